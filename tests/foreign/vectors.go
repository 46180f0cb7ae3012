// Prints test vectors for gateway/audit, computed by Go's own transparency log library:
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go run vectors.go > gateway/audit/tests/testdata/tlog-vectors.json
//
// Entry n of the tree is the text "leaf n".
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"

	"golang.org/x/mod/sumdb/tlog"
)

type root struct {
	Size int64     `json:"size"`
	Root tlog.Hash `json:"root"`
}

type inclusion struct {
	Index int64       `json:"index"`
	Size  int64       `json:"size"`
	Root  tlog.Hash   `json:"root"`
	Proof []tlog.Hash `json:"proof"`
}

type consistency struct {
	First      int64       `json:"first"`
	Second     int64       `json:"second"`
	FirstRoot  tlog.Hash   `json:"first_root"`
	SecondRoot tlog.Hash   `json:"second_root"`
	Proof      []tlog.Hash `json:"proof"`
}

type storage []tlog.Hash

func (s storage) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		hashes[i] = s[index]
	}
	return hashes, nil
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	// Not 0: this version of the library gives the empty tree a root of zeros, RFC 6962 the hash of nothing.
	sizes := []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 64, 70, 127, 255, 256, 257, 300, 511, 512, 600,
		1000, 4096, 65535, 65536, 65537, 66000, 70000}
	largest := sizes[len(sizes)-1]
	var tree storage
	for n := int64(0); n < largest; n++ {
		tree = append(tree, must(tlog.StoredHashes(n, []byte(fmt.Sprintf("leaf %d", n)), tree))...)
	}
	rootOf := func(size int64) tlog.Hash { return must(tlog.TreeHash(size, tree)) }

	var out struct {
		Roots       []root        `json:"roots"`
		Inclusion   []inclusion   `json:"inclusion"`
		Consistency []consistency `json:"consistency"`
	}
	for i, size := range sizes {
		out.Roots = append(out.Roots, root{size, rootOf(size)})
		// Steps that are coprime to the sizes spread the choice; the last entry is always among them.
		for _, index := range []int64{size - 1, size * 5 / 13} {
			proof := must(tlog.ProveRecord(size, index, tree))
			out.Inclusion = append(out.Inclusion, inclusion{index, size, rootOf(size), append([]tlog.Hash{}, proof...)})
		}
		for _, first := range []int64{sizes[(i+len(sizes)-1)%len(sizes)], size * 7 / 11} {
			if first == 0 || first > size {
				continue
			}
			proof := must(tlog.ProveTree(size, first, tree))
			out.Consistency = append(out.Consistency,
				consistency{first, size, rootOf(first), rootOf(size), append([]tlog.Hash{}, proof...)})
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(out); err != nil {
		log.Fatal(err)
	}
}
