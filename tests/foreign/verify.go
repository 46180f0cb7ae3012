// Verifies a Gatepost audit log with Go's own transparency log library, sharing no code with Gatepost:
//
//	verify DIR VKEYFILE [PROOF...]
//
// It checks the checkpoint's signature, rebuilds the tree from the entry bundles alone, compares the root and every
// tile, and checks tlog-proof files against the same key. Exit code 0 when all is well, 1 when not, 2 for usage.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Tiles are 2^8 hashes wide.
const tileHeight = 8

type checkpoint struct {
	size int64
	root tlog.Hash
}

type storage []tlog.Hash

func (s storage) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(s)) {
			return nil, fmt.Errorf("hash %d is beyond the tree", index)
		}
		hashes[i] = s[index]
	}
	return hashes, nil
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: verify DIR VKEYFILE [PROOF...]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Println("FAILED:", err)
		os.Exit(1)
	}
}

func run(dir, vkeyFile string, proofs []string) error {
	vkey, err := os.ReadFile(vkeyFile)
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	if err != nil {
		return fmt.Errorf("%s: %w", vkeyFile, err)
	}
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return err
	}
	head, err := openCheckpoint(signed, verifier)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	tree, err := readEntries(dir, head.size)
	if err != nil {
		return err
	}
	if err := checkRoot(tree, head); err != nil {
		return err
	}
	tiles, err := checkTiles(dir, tree, head.size)
	if err != nil {
		return err
	}
	for _, file := range proofs {
		if err := checkProof(file, verifier); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	fmt.Printf("OK (Go sumdb): %d entries of %s, root %s, %d tiles, %d proofs\n",
		head.size, verifier.Name(), head.root, tiles, len(proofs))
	return nil
}

func openCheckpoint(signed []byte, verifier note.Verifier) (checkpoint, error) {
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return checkpoint{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != verifier.Name() {
		return checkpoint{}, errors.New("not the three lines origin, size and root of this log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 {
		return checkpoint{}, errors.New("bad size")
	}
	root, err := tlog.ParseHash(lines[2])
	return checkpoint{size, root}, err
}

// path spells a tile as C2SP tlog-tiles does: without the height, and with "entries" for the data.
func path(tile tlog.Tile) string {
	spelled := strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	return "tile/" + strings.Replace(spelled, "data/", "entries/", 1)
}

func readEntries(dir string, size int64) (storage, error) {
	var tree storage
	for first := int64(0); first < size; first += 1 << tileHeight {
		width := size - first
		if width > 1<<tileHeight {
			width = 1 << tileHeight
		}
		name := path(tlog.Tile{H: tileHeight, L: -1, N: first >> tileHeight, W: int(width)})
		bundle, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		for entry := int64(0); entry < width; entry++ {
			if len(bundle) < 2 || len(bundle)-2 < int(binary.BigEndian.Uint16(bundle)) {
				return nil, fmt.Errorf("%s ends inside entry %d", name, entry)
			}
			end := 2 + int(binary.BigEndian.Uint16(bundle))
			hashes, err := tlog.StoredHashes(first+entry, bundle[2:end], tree)
			if err != nil {
				return nil, err
			}
			tree = append(tree, hashes...)
			bundle = bundle[end:]
		}
		if len(bundle) > 0 {
			return nil, fmt.Errorf("%s goes on after entry %d", name, width-1)
		}
	}
	return tree, nil
}

func checkRoot(tree storage, head checkpoint) error {
	// This version of the library gives the empty tree a root of zeros; RFC 6962 says the hash of nothing.
	if head.size == 0 {
		if head.root.String() != "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" {
			return errors.New("the root of the empty tree is wrong")
		}
		return nil
	}
	root, err := tlog.TreeHash(head.size, tree)
	if err != nil {
		return err
	}
	if root != head.root {
		return fmt.Errorf("the entries hash to %s, the checkpoint says %s", root, head.root)
	}
	return nil
}

// tilesOf lists the full tiles of each level and its partial one. (tlog.NewTiles lists narrower partial ones too.)
func tilesOf(size int64) []tlog.Tile {
	var tiles []tlog.Tile
	level := 0
	for nodes := size; nodes > 0; nodes >>= tileHeight {
		full := nodes >> tileHeight
		for n := int64(0); n < full; n++ {
			tiles = append(tiles, tlog.Tile{H: tileHeight, L: level, N: n, W: 1 << tileHeight})
		}
		if width := int(nodes - full<<tileHeight); width > 0 {
			tiles = append(tiles, tlog.Tile{H: tileHeight, L: level, N: full, W: width})
		}
		level++
	}
	return tiles
}

func checkTiles(dir string, tree storage, size int64) (int, error) {
	tiles := tilesOf(size)
	for _, tile := range tiles {
		expected, err := tlog.ReadTileData(tile, tree)
		if err != nil {
			return 0, err
		}
		actual, err := os.ReadFile(filepath.Join(dir, path(tile)))
		if err != nil {
			return 0, err
		}
		if !bytes.Equal(actual, expected) {
			return 0, fmt.Errorf("%s does not hold the hashes of the entries", path(tile))
		}
	}
	return len(tiles), nil
}

// checkProof reads a tlog-proof that carries its entry in the extra line.
func checkProof(file string, verifier note.Verifier) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	body, signed, found := strings.Cut(string(text), "\n\n")
	lines := strings.Split(body, "\n")
	if !found || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" ||
		!strings.HasPrefix(lines[1], "extra ") || !strings.HasPrefix(lines[2], "index ") {
		return errors.New("not a tlog-proof with its entry")
	}
	head, err := openCheckpoint([]byte(signed), verifier)
	if err != nil {
		return err
	}
	entry, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	return tlog.CheckRecord(proof, head.size, head.root, index, tlog.RecordHash(entry))
}
