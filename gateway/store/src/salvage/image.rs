//! The database as its pages, from the file and what the write-ahead log holds beyond it. Read without SQLite, which gives up
//! a whole table for one bad page, and would write to the directory that is to stay as it is.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::flip::Flip;
use super::mend::mended;
use super::page::Pages;
use crate::sqlite::wal::{Chain, FRAME_HEADER_BYTES, HEADER_BYTES, is_log_header, number};

const PAGE_BYTES_DEFAULT: u32 = 4096;

/// Where the newest version of a page stands.
enum Version {
    Wal(u64),
    /// Of a frame in which one bit had flipped.
    Read(Vec<u8>),
}

pub(super) struct Image {
    database: File,
    wal: Option<File>,
    page_bytes: u32,
    /// Pages there are.
    pub(super) count: u32,
    newer: HashMap<u32, Version>,
    /// Pages that stand in the log behind a frame that does not fit, oldest first: number and content.
    behind: Vec<(u32, u64)>,
    /// What is wrong with the log: where, what, and whether it could be undone.
    pub(super) wal_faults: Vec<WalFault>,
}

/// The pages as they would be with all that stands behind a damaged frame.
pub(super) struct Behind<'i> {
    image: &'i Image,
    newest: HashMap<u32, u64>,
}

impl Pages for Behind<'_> {
    fn page_bytes(&self) -> usize {
        self.image.page_bytes()
    }

    fn page(&self, number: u32) -> io::Result<Option<Vec<u8>>> {
        match self.newest.get(&number) {
            Some(at) => self.image.read(self.image.wal.as_ref(), *at),
            None => self.image.page(number),
        }
    }
}

pub(super) struct WalFault {
    /// Counted from 1; 0 is the log's header.
    pub(super) frame: u64,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    /// It was one bit.
    Mended,
    /// It was one bit of this page, and it is not known which.
    Taken { page: u32 },
    /// From there on, so many frames.
    Lost { frames: u64 },
}

impl Pages for Image {
    fn page_bytes(&self) -> usize {
        self.page_bytes as usize
    }

    fn page(&self, number: u32) -> io::Result<Option<Vec<u8>>> {
        if number == 0 || number > self.count {
            return Ok(None);
        }
        let file = match self.newer.get(&number) {
            Some(Version::Read(page)) => return Ok(Some(page.clone())),
            Some(Version::Wal(at)) => return self.read(self.wal.as_ref(), *at),
            None => Some(&self.database),
        };
        self.read(file, u64::from(number - 1) * u64::from(self.page_bytes))
    }
}

impl Image {
    pub(super) fn open(database: &Path, wal: &Path) -> io::Result<Self> {
        let database = File::open(database)?;
        let wal = match File::open(wal) {
            Ok(wal) => Some(wal),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut header = [0; 100];
        let stored =
            database.read_exact_at(&mut header, 0).map(|()| u16::from_be_bytes([header[16], header[17]]));
        let page_bytes = match stored.unwrap_or(0) {
            1 => 65_536,
            bytes if bytes >= 512 && bytes.is_power_of_two() => u32::from(bytes),
            _ => PAGE_BYTES_DEFAULT,
        };
        let pages = database.metadata()?.len() / u64::from(page_bytes);
        let mut image = Self {
            database,
            wal: None,
            page_bytes,
            count: u32::try_from(pages).unwrap_or(u32::MAX),
            newer: HashMap::new(),
            behind: Vec::new(),
            wal_faults: Vec::new(),
        };
        if let Some(wal) = &wal {
            image.read_wal(wal)?;
        }
        image.wal = wal;
        Ok(image)
    }

    /// Whether the log holds anything that the database's file does not.
    pub(super) fn is_ahead_of_its_file(&self) -> bool {
        !self.newer.is_empty()
    }

    /// Pages that were committed behind a damaged frame, as they are; and where their continuations stand.
    pub(super) fn behind(&self) -> (Behind<'_>, impl Iterator<Item = io::Result<Option<Vec<u8>>>>) {
        let newest = self.behind.iter().copied().collect();
        (Behind { image: self, newest }, self.behind.iter().map(|(_, at)| self.read(self.wal.as_ref(), *at)))
    }

    fn read(&self, file: Option<&File>, at: u64) -> io::Result<Option<Vec<u8>>> {
        let mut page = vec![0; self.page_bytes()];
        match file.map(|file| file.read_exact_at(&mut page, at)) {
            Some(Ok(())) => Ok(Some(page)),
            Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Some(Err(error)) => Err(error),
            None => Ok(None),
        }
    }

    /// Takes up what was committed, as SQLite would, and goes on behind a single flipped bit.
    fn read_wal(&mut self, wal: &File) -> io::Result<()> {
        let length = wal.metadata()?.len();
        let mut header = [0; HEADER_BYTES];
        if length < HEADER_BYTES as u64 {
            return Ok(());
        }
        wal.read_exact_at(&mut header, 0)?;
        if header == [0; HEADER_BYTES] {
            return Ok(());
        }
        if !is_log_header(&header) {
            // What its sum leaves open the first frame says, which has its salts.
            let mut salts = [0; 8];
            let first = wal.read_exact_at(&mut salts, (HEADER_BYTES + 8) as u64);
            let is_header = |header: &[u8]| header.try_into().is_ok_and(is_log_header);
            let sound =
                mended(&header, |header| is_header(header) && (first.is_err() || header[16..24] == salts));
            let sound = sound.and_then(|sound| <[u8; HEADER_BYTES]>::try_from(sound).ok());
            match sound {
                Some(sound) => {
                    self.wal_faults.push(WalFault { frame: 0, outcome: Outcome::Mended });
                    header = sound;
                }
                None => {
                    let frame_bytes = FRAME_HEADER_BYTES as u64 + u64::from(self.page_bytes);
                    let frames = (length - HEADER_BYTES as u64) / frame_bytes;
                    self.wal_faults.push(WalFault { frame: 0, outcome: Outcome::Lost { frames } });
                    let start = HEADER_BYTES as u64;
                    self.behind = (0..frames)
                        .map(|n| (0, start + n * frame_bytes + FRAME_HEADER_BYTES as u64))
                        .collect();
                    return Ok(());
                }
            }
        }
        self.page_bytes = number(&header, 2);
        let mut chain = Chain::of_header(&header);
        let mut frame = vec![0; FRAME_HEADER_BYTES + self.page_bytes()];
        let (mut at, mut count) = (HEADER_BYTES as u64, 0);
        let mut open: Vec<(u32, Version)> = Vec::new();
        while at + frame.len() as u64 <= length {
            count += 1;
            wal.read_exact_at(&mut frame, at)?;
            let page_at = at + FRAME_HEADER_BYTES as u64;
            let fits = |frame: &[u8]| chain.fits(frame, &header);
            let version = if fits(&frame) {
                Version::Wal(page_at)
            } else {
                let ours = crate::sqlite::wal::is_nearly(&frame[8..16], &header[16..24]);
                let flip = if ours { Flip::find(&*self, &frame, fits) } else { Flip::None };
                if matches!(flip, Flip::None) && self.ends_here(wal, at, length, &header)? {
                    break;
                }
                let found = frame[FRAME_HEADER_BYTES..].to_vec();
                let (outcome, page) = match flip {
                    Flip::PutRight(sound) => {
                        frame = sound;
                        (Outcome::Mended, frame[FRAME_HEADER_BYTES..].to_vec())
                    }
                    // Its rows have sums of their own, which find it.
                    Flip::Somewhere(fitting) => {
                        frame = fitting;
                        (Outcome::Taken { page: number(&frame, 0) }, found)
                    }
                    Flip::None | Flip::Anywhere => {
                        let frames = self.remember_behind(wal, at, length, &header)?;
                        self.wal_faults.push(WalFault { frame: count, outcome: Outcome::Lost { frames } });
                        break;
                    }
                };
                self.wal_faults.push(WalFault { frame: count, outcome });
                Version::Read(page)
            };
            chain.add_frame(&frame);
            open.push((number(&frame, 0), version));
            let pages = number(&frame, 1);
            if pages > 0 {
                self.newer.extend(open.drain(..));
                self.count = pages;
            }
            at += frame.len() as u64;
        }
        Ok(())
    }

    /// Whether what does not fit is nothing but an earlier log's rest, or what a power cut left of the newest transaction.
    fn ends_here(&self, wal: &File, at: u64, length: u64, header: &[u8]) -> io::Result<bool> {
        let mut rest = Reader { file: wal, at, length };
        let mut frame = vec![0; FRAME_HEADER_BYTES + self.page_bytes()];
        io::Read::read_exact(&mut rest, &mut frame)?;
        Ok(!crate::sqlite::wal::goes_on(rest, &mut frame, &header[16..24])?)
    }

    fn remember_behind(&mut self, wal: &File, from: u64, length: u64, header: &[u8]) -> io::Result<u64> {
        let mut frame = [0; FRAME_HEADER_BYTES];
        let bytes = FRAME_HEADER_BYTES as u64 + u64::from(self.page_bytes);
        let mut at = from;
        while at + bytes <= length {
            wal.read_exact_at(&mut frame, at)?;
            if at == from || frame[8..16] == header[16..24] {
                self.behind.push((number(&frame, 0), at + FRAME_HEADER_BYTES as u64));
            }
            at += bytes;
        }
        Ok(self.behind.len() as u64)
    }
}

/// A part of a file, from a position on.
struct Reader<'a> {
    file: &'a File,
    at: u64,
    length: u64,
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
