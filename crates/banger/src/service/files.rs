//! The files of an installation: which, from where to where, and how one is put in its place.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::error::{CliError, Kind, chain};
use crate::spawn;

/// What goes to `libexec/banger`, and whether nothing works without it.
const COMPANIONS: [(&str, bool); 2] = [("banger-agent", true), ("vhost-device-vsock", false)];

/// Names of all programs, below the prefix.
const PLACES: [(&str, &str); 4] = [
    ("banger", "bin/banger"),
    ("bangerd", "bin/bangerd"),
    ("banger-agent", "libexec/banger/banger-agent"),
    ("vhost-device-vsock", "libexec/banger/vhost-device-vsock"),
];

/// The documented defaults, below the prefix as in a release. Read by people alone.
const DEFAULTS: &str = "share/banger/config.default.toml";

/// Directories of an installation's own, below the prefix.
const DIRECTORIES: [&str; 2] = ["libexec/banger", "share/banger"];

/// What a file of the installation is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A copy of a program.
    Program(PathBuf),
    /// A copy of a file that is read.
    Data(PathBuf),
    /// A unit file's text.
    Text(String),
}

/// A file of the installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstallFile {
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
}

/// What putting a file in its place came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Written,
    /// It was there already, the same to the byte.
    Unchanged,
}

/// The files of the release that this process belongs to, and where they go.
pub(crate) fn release(prefix: &Path) -> Result<Vec<InstallFile>, CliError> {
    let client = std::env::current_exe()
        .map_err(|error| CliError::general(format!("failed to find this program: {error}")))?;
    let daemon = spawn::find_program()?;
    release_of(prefix, &client, &daemon)
}

fn release_of(prefix: &Path, client: &Path, daemon: &Path) -> Result<Vec<InstallFile>, CliError> {
    let bin = daemon.parent().unwrap_or(Path::new("/"));
    let release = bin.parent().unwrap_or(bin);
    let places = [release.join("libexec/banger"), bin.to_owned()];
    let mut sources = vec![("banger", client.to_owned()), ("bangerd", daemon.to_owned())];
    for (name, needed) in COMPANIONS {
        let found = places
            .iter()
            .map(|place| place.join(name))
            .find(|path| path.is_file());
        match found {
            Some(path) => sources.push((name, path)),
            None if needed => {
                let mut error = CliError::new(Kind::Prerequisite, format!("failed to find {name}"))
                    .hint("install from a complete release: bin and libexec beside each other");
                error.details = places
                    .iter()
                    .map(|place| format!("looked in {}", place.display()))
                    .collect();
                return Err(error);
            }
            // The host's own may do.
            None => {}
        }
    }
    let mut files: Vec<InstallFile> = sources
        .into_iter()
        .filter_map(|(name, source)| {
            let (_, place) = PLACES.into_iter().find(|(known, _)| *known == name)?;
            Some(InstallFile {
                path: prefix.join(place),
                content: Content::Program(source),
            })
        })
        .collect();
    // A build that was never staged has none, and runs without.
    let defaults = release.join(DEFAULTS);
    if defaults.is_file() {
        files.push(InstallFile {
            path: prefix.join(DEFAULTS),
            content: Content::Data(defaults),
        });
    }
    Ok(files)
}

/// Everything that an installation may have put under a prefix: files, then directories of its own.
pub(crate) fn below(prefix: &Path) -> (Vec<PathBuf>, [PathBuf; 2]) {
    let programs = PLACES.into_iter().map(|(_, place)| place);
    let files = programs.chain([DEFAULTS]).map(|place| prefix.join(place));
    (files.collect(), DIRECTORIES.map(|place| prefix.join(place)))
}

/// Puts a file in its place, whole or not at all: a program that runs is replaced, not written to.
pub(crate) fn put(file: &InstallFile) -> Result<Put, CliError> {
    let failed = |error: io::Error| {
        CliError::new(
            Kind::of_io(&error),
            format!("failed to write {}: {}", file.path.display(), chain(&error)),
        )
    };
    let open = |source: &Path| {
        File::open(source).map(Source::File).map_err(|error| {
            CliError::new(
                Kind::of_io(&error),
                format!("failed to read {}: {error}", source.display()),
            )
        })
    };
    let (mode, mut source) = match &file.content {
        Content::Program(source) => (0o755, open(source)?),
        Content::Data(source) => (0o644, open(source)?),
        Content::Text(text) => (0o644, Source::Text(text.as_bytes())),
    };
    if is_same(&file.path, mode, &mut source).map_err(failed)? {
        return Ok(Put::Unchanged);
    }
    let directory = file.path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(failed)?;
    // A name that neither systemd nor a shell takes for anything; removed again when anything fails.
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    let new = directory.join(format!(".{name}.{}.new", std::process::id()));
    let written = source.rewound().and_then(|mut source| {
        let mut out = File::create(&new)?;
        io::copy(&mut source, &mut out)?;
        out.flush()?;
        out.set_permissions(Permissions::from_mode(mode))?;
        out.sync_all()?;
        fs::rename(&new, &file.path)
    });
    if let Err(error) = written {
        // It may never have come to be.
        fs::remove_file(&new).ok();
        return Err(failed(error));
    }
    Ok(Put::Written)
}

/// What a file is to be made of.
enum Source<'a> {
    File(File),
    Text(&'a [u8]),
}

impl Source<'_> {
    /// From its beginning.
    fn rewound(&mut self) -> io::Result<Box<dyn io::Read + '_>> {
        Ok(match self {
            Self::File(file) => {
                io::Seek::rewind(file)?;
                Box::new(file)
            }
            Self::Text(text) => Box::new(*text),
        })
    }
}

/// Whether a file has this content and mode already.
fn is_same(path: &Path, mode: u32, source: &mut Source<'_>) -> io::Result<bool> {
    let Ok(mut there) = File::open(path) else {
        return Ok(false);
    };
    if there.metadata()?.permissions().mode() & 0o7777 != mode {
        return Ok(false);
    }
    let mut source = source.rewound()?;
    let (mut one, mut other) = (Vec::new(), Vec::new());
    const CHUNK: u64 = 1 << 20;
    loop {
        one.clear();
        other.clear();
        (&mut source).take(CHUNK).read_to_end(&mut one)?;
        (&mut there).take(CHUNK).read_to_end(&mut other)?;
        if one != other {
            return Ok(false);
        }
        if one.is_empty() {
            return Ok(true);
        }
    }
}

/// Removes a file; whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, CliError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(CliError::new(
            Kind::of_io(&error),
            format!("failed to remove {}: {error}", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_put_whole_and_only_where_it_differs() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, vec![7; (1 << 20) + 1]).unwrap();
        let file = InstallFile {
            path: directory.path().join("a/b/program"),
            content: Content::Program(source.clone()),
        };
        assert_eq!(put(&file).unwrap(), Put::Written);
        assert_eq!(put(&file).unwrap(), Put::Unchanged);
        let mode = || fs::metadata(&file.path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o755);
        // One byte more, and a mode that somebody changed.
        File::options()
            .append(true)
            .open(&source)
            .unwrap()
            .write_all(b"x")
            .unwrap();
        assert_eq!(put(&file).unwrap(), Put::Written);
        assert!(fs::read(&file.path).unwrap() == fs::read(&source).unwrap());
        fs::set_permissions(&file.path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!((put(&file).unwrap(), mode()), (Put::Written, 0o755));
        let names = fs::read_dir(directory.path().join("a/b")).unwrap().count();
        assert_eq!(names, 1, "no temporary name is left");
        assert!(remove(&file.path).unwrap());
        assert!(!remove(&file.path).unwrap());
    }

    #[test]
    fn a_release_and_where_it_goes() {
        let release = tempfile::tempdir().unwrap();
        let at = |path: &str| release.path().join(path);
        for directory in ["bin", "libexec/banger"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        let find = || release_of(Path::new("/p"), &at("bin/banger"), &at("bin/bangerd"));
        let error = find().unwrap_err();
        assert!(
            error.message.contains("banger-agent") && error.details.len() == 2,
            "{error:?}"
        );
        fs::write(at("libexec/banger/banger-agent"), "").unwrap();
        let paths = |files: Vec<InstallFile>| files.into_iter().map(|file| file.path).collect::<Vec<_>>();
        let expected = [
            "/p/bin/banger",
            "/p/bin/bangerd",
            "/p/libexec/banger/banger-agent",
        ];
        assert_eq!(paths(find().unwrap()), expected.map(PathBuf::from));
        fs::write(at("libexec/banger/vhost-device-vsock"), "").unwrap();
        fs::create_dir_all(at("share/banger")).unwrap();
        fs::write(at("share/banger/config.default.toml"), "").unwrap();
        let files = find().unwrap();
        assert_eq!(
            files.last().unwrap(),
            &InstallFile {
                path: "/p/share/banger/config.default.toml".into(),
                content: Content::Data(at("share/banger/config.default.toml")),
            }
        );
        // What is put there is what is removed, and no directory of its own is left.
        let (all, own) = below(Path::new("/p"));
        assert_eq!(paths(files), all);
        let not_own = |path: &&PathBuf| !own.iter().any(|own| path.parent() == Some(own));
        let shared: Vec<&PathBuf> = all.iter().filter(not_own).collect();
        assert_eq!(shared, [Path::new("/p/bin/banger"), Path::new("/p/bin/bangerd")]);
    }

    #[test]
    fn what_is_read_is_no_program() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, "# a key\n").unwrap();
        let file = InstallFile {
            path: directory.path().join("share/file"),
            content: Content::Data(source),
        };
        assert_eq!(put(&file).unwrap(), Put::Written);
        let mode = fs::metadata(&file.path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o644);
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "# a key\n");
    }
}
