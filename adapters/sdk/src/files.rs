//! Files that settings point to: opened also where another has been put in their place, and read again when they have changed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::client::locked;
use crate::egress;

/// How long the gateway, which is on this host, may take to open a file.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// Files that could not be used are read again so much later, also if they have not changed.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Opens a file of the settings to be read. The sandbox knows files by what they were when this process began; what has been put in
/// their place since, as certificates are renewed, is opened by the gateway.
pub fn open(file: &Path) -> io::Result<File> {
    open_or_ask(File::open(file), egress::desk(), file)
}

fn open_or_ask(opened: io::Result<File>, desk: Option<PathBuf>, file: &Path) -> io::Result<File> {
    let denied = match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
        opened => return opened,
    };
    let Some(desk) = desk else { return Err(denied) };
    let (said, opened) = ask(&desk, file).map_err(|error| {
        io::Error::new(denied.kind(), format!("{denied}, and the gateway cannot be asked: {error}"))
    })?;
    opened.ok_or_else(|| {
        let said = String::from_utf8_lossy(said.trim_ascii());
        io::Error::new(
            denied.kind(),
            format!("{denied}, and the gateway does not open it either ({said}; its log says more)"),
        )
    })
}

/// The gateway's answer, and the file if it has opened it.
fn ask(desk: &Path, file: &Path) -> io::Result<(Vec<u8>, Option<File>)> {
    let mut desk = UnixStream::connect(desk)?;
    desk.set_read_timeout(Some(OPEN_DEADLINE))?;
    desk.set_write_timeout(Some(OPEN_DEADLINE))?;
    // A name with an end of line in it is one that the gateway does not take.
    desk.write_all(&[file.as_os_str().as_bytes(), b"\n"].concat())?;
    let (mut answer, mut opened) = (Vec::new(), None);
    while !answer.ends_with(b"\n") && answer.len() < egress::ANSWER_BYTES_MAX {
        let (bytes, passed) = egress::receive(&desk)?;
        if bytes.is_empty() {
            break;
        }
        answer.extend_from_slice(&bytes);
        opened = opened.or(passed);
    }
    Ok((answer, opened.map(File::from)))
}

/// Reads a file of the settings, of so many bytes at most.
pub fn read(file: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_open(open(file)?, bytes_max)
}

/// Reads what has been opened.
pub fn read_open(open: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    // Cut off, it would be taken for a shorter one.
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {bytes_max} bytes"),
        ));
    }
    Ok(bytes)
}

/// What changes when a file is written, replaced, pointed elsewhere, or given other rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Stamp {
    /// `None` for one that is not there.
    fn of(file: &Path) -> Option<Self> {
        let meta = std::fs::metadata(file).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some(Self { device: meta.dev(), inode: meta.ino(), changed, bytes: meta.len() })
    }

    fn all<'a>(files: impl IntoIterator<Item = &'a Path>) -> Vec<Option<Self>> {
        files.into_iter().map(Self::of).collect()
    }
}

/// What is read from files, and read again when they have changed. Files that cannot be used leave in force what was read before.
#[derive(Debug)]
pub struct Live<T>(Mutex<Held<T>>);

#[derive(Debug)]
struct Held<T> {
    read: Arc<T>,
    /// The files as they were when they were last read.
    stamps: Vec<Option<Stamp>>,
    /// When they could not be used, which may have been the gateway's trouble and not theirs.
    failed_at: Option<Instant>,
}

impl<T> Live<T> {
    /// `files` are those that `read` reads.
    pub fn new<'a, E>(
        files: impl IntoIterator<Item = &'a Path>,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<Self, E> {
        // Before they are read: what changes in between is read once more.
        let stamps = Stamp::all(files);
        Ok(Self(Mutex::new(Held { read: Arc::new(read()?), stamps, failed_at: None })))
    }

    /// As it is now; the same files and the same way to read them.
    pub fn current<'a, E: fmt::Display>(
        &self,
        files: impl IntoIterator<Item = &'a Path>,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Arc<T> {
        let stamps = Stamp::all(files);
        let mut held = locked(&self.0);
        let changed = held.stamps != stamps;
        if changed || held.failed_at.is_some_and(|at| at.elapsed() >= READ_AGAIN_AFTER) {
            held.stamps = stamps;
            match read() {
                Ok(read) => {
                    held.read = Arc::new(read);
                    held.failed_at = None;
                    tracing::info!("files of the settings have changed and were read again");
                }
                Err(error) => {
                    held.failed_at = Some(Instant::now());
                    // Told once per change.
                    if changed {
                        tracing::warn!(%error, "files of the settings have changed and cannot be used; going on with what they held before");
                    }
                }
            }
        }
        Arc::clone(&held.read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, IoSlice};
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixListener;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    /// As the sandbox does it; whoever runs the tests may be allowed everything.
    fn denied() -> io::Result<File> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// A gateway that answers once, and hands out a file with `ok`.
    fn asked(answer: &'static str, handed: &str) -> (String, io::Result<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let desk = dir.path().join("egress");
        let listener = UnixListener::bind(&desk).unwrap();
        std::fs::write(dir.path().join("new"), handed).unwrap();
        let new = File::open(dir.path().join("new")).unwrap();
        let gateway = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let passed = [new.as_fd()];
            if answer.starts_with("ok") {
                assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
            }
            sendmsg(&stream, &[IoSlice::new(answer.as_bytes())], &mut control, SendFlags::NOSIGNAL).unwrap();
            asked
        });
        let opened = open_or_ask(denied(), Some(desk), Path::new("/etc/cert.pem"));
        (gateway.join().unwrap(), opened.and_then(|open| read_open(open, 100)))
    }

    #[test]
    fn what_may_not_be_opened_is_asked_for_and_all_else_is_not() {
        let (said, read) = asked("ok\n", "the new one");
        assert_eq!((said.as_str(), read.unwrap()), ("/etc/cert.pem\n", b"the new one".to_vec()));
        for answer in ["refused: not_allowed\n", "failed: not_opened\n", "", "o"] {
            let error = asked(answer, "").1.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{answer}");
            assert!(error.to_string().contains(answer.trim_end()), "{error}");
        }
        let nobody = || Some(PathBuf::from("/nonexistent/egress"));
        let error = open_or_ask(denied(), nobody(), Path::new("/x")).unwrap_err();
        assert!(error.to_string().contains("the gateway cannot be asked"), "{error}");
        assert!(open_or_ask(denied(), None, Path::new("/x")).is_err());
        let gone = open_or_ask(Err(io::ErrorKind::NotFound.into()), nobody(), Path::new("/x")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    /// The files have the text `text`, or cannot be used; how often they were read.
    fn read_by(live: &Live<String>, file: &Path, text: Result<&str, &str>) -> (String, usize) {
        let mut reads = 0;
        let held = live.current([file], || {
            reads += 1;
            text.map(str::to_owned)
        });
        (held.to_string(), reads)
    }

    #[test]
    fn files_are_read_when_they_change_and_what_could_not_be_used_again_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "1").unwrap();
        let live = Live::new([file.as_path()], || Ok::<_, &str>("one".to_owned())).unwrap();
        let said = |text: &str, reads| (text.to_owned(), reads);
        assert_eq!(read_by(&live, &file, Ok("not asked")), said("one", 0));
        std::fs::write(&file, "12").unwrap();
        assert_eq!(read_by(&live, &file, Err("no use")), said("one", 1));
        assert_eq!(read_by(&live, &file, Ok("not yet")), said("one", 0));
        let while_ago = || Instant::now().checked_sub(READ_AGAIN_AFTER);
        locked(&live.0).failed_at = while_ago();
        assert_eq!(read_by(&live, &file, Err("no use")), said("one", 1));
        locked(&live.0).failed_at = while_ago();
        assert_eq!(read_by(&live, &file, Ok("two")), said("two", 1));
        assert_eq!(read_by(&live, &file, Ok("not asked")), said("two", 0));
    }

    #[test]
    fn what_is_too_large_is_not_read_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert_eq!(read(&file, 4).unwrap_err().to_string(), "it is larger than 4 bytes");
    }
}
