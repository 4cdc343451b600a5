//! Kernel modules: which files a list of module names needs, in the order to load them, as uncompressed bytes.
//!
//! Dependencies are read from the modules' own `.modinfo` section, which is where `depmod` takes them from: a
//! distribution's package holds no `modules.dep` yet, that file is made on the machine that installs it. Names are
//! compared as the kernel does, with `-` and `_` equal. Modules are read here, not loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::decompress;
use crate::elf::{self, Elf};

/// The largest module that is read, in bytes, compressed or not.
const MODULE_LIMIT: u64 = 64 << 20;
/// The largest `modules.builtin`, in bytes; Debian's is 5 KB.
const LIST_LIMIT: u64 = 4 << 20;
/// How many files and directories a tree may have; a full distribution kernel has about 7000.
const TREE_LIMIT: usize = 100_000;
/// How deep a tree may go; `kernel/drivers/net/ethernet/mellanox/mlx5/core` is 7.
const DEPTH_LIMIT: usize = 16;
/// How many modules one request may come to.
const RESULT_LIMIT: usize = 512;

/// Why modules could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the tree could not be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A line of `modules.builtin` is not a module's path.
    #[error("malformed line {line} of {}: {text:?}", path.display())]
    MalformedLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The start of the line.
        text: String,
    },
    /// A file is larger than any real one.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        limit: u64,
    },
    /// There are more files, or deeper directories, than any real kernel has.
    #[error("module tree {} has too many files or is too deep", path.display())]
    TreeTooLarge {
        /// The top of the tree.
        path: PathBuf,
    },
    /// A compressed module does not decompress.
    #[error("failed to decompress module {}", path.display())]
    Decompress {
        /// The module.
        path: PathBuf,
        /// The cause.
        #[source]
        source: decompress::Error,
    },
    /// A module is not a well-formed ELF file.
    #[error("malformed module {}", path.display())]
    Elf {
        /// The module.
        path: PathBuf,
        /// The cause.
        #[source]
        source: elf::Error,
    },
    /// A module without the section that describes it.
    #[error("module {} has no .modinfo section", path.display())]
    NoInfo {
        /// The module.
        path: PathBuf,
    },
    /// A required module is neither in the tree nor built into the kernel.
    #[error("kernel has no module {name}{}", needed_by.as_ref().map(|by| format!(", needed by {by}")).unwrap_or_default())]
    Missing {
        /// The module's name.
        name: String,
        /// The module that depends on it, unless it was asked for itself.
        needed_by: Option<String>,
    },
    /// Modules that depend on each other, which cannot be loaded in any order.
    #[error("module {name} depends on itself")]
    Cycle {
        /// One of them.
        name: String,
    },
    /// A request that comes to more modules than anybody needs.
    #[error("more than {limit} modules are needed")]
    TooMany {
        /// The bound.
        limit: usize,
    },
}

/// A module that a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Its name, such as `virtio_blk`.
    pub name: &'a str,
    /// Whether its absence is an error.
    pub required: bool,
}

/// A module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name with underscores, such as `virtio_blk`.
    pub name: String,
    /// The ELF file, uncompressed.
    pub bytes: Vec<u8>,
}

/// The modules of one kernel: what is in files and what is built in.
#[derive(Debug, Clone)]
pub struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    /// Lists `dir`, which is `…/lib/modules/RELEASE` or holds modules flat. Symbolic links are not followed, for
    /// `build` and `source` lead out of the tree.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        let mut seen = 0;
        let mut pending = vec![(dir.to_owned(), 0)];
        while let Some((current, depth)) = pending.pop() {
            let read_error = |source| Error::Read {
                path: current.clone(),
                source,
            };
            for entry in fs::read_dir(&current).map_err(read_error)? {
                let entry = entry.map_err(read_error)?;
                seen += 1;
                if seen > TREE_LIMIT || depth > DEPTH_LIMIT {
                    return Err(Error::TreeTooLarge { path: dir.to_owned() });
                }
                let kind = entry.file_type().map_err(read_error)?;
                if kind.is_dir() {
                    pending.push((entry.path(), depth + 1));
                } else if kind.is_file()
                    && let Some(name) = entry.file_name().to_str().and_then(module_name)
                {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self {
            files,
            builtin: read_builtin(&dir.join("modules.builtin"))?,
        })
    }

    /// The modules wanted and all that they need, each after those it needs. Built-in ones are left out; optional ones
    /// that are not there are, too. The order depends on the request and the modules alone.
    pub fn resolve(&self, wanted: &[Wanted<'_>]) -> Result<Vec<Module>, Error> {
        let mut resolver = Resolver {
            tree: self,
            state: BTreeMap::new(),
            loaded: Vec::new(),
        };
        for Wanted { name, required } in wanted {
            let name = normalise(name);
            if self.has(&name) {
                resolver.visit(&name)?;
            } else if *required {
                return Err(Error::Missing {
                    name,
                    needed_by: None,
                });
            }
        }
        Ok(resolver.loaded)
    }

    fn has(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.builtin.contains(name)
    }
}

struct Resolver<'a> {
    tree: &'a ModuleTree,
    /// Modules on the way down are `false`, loaded ones `true`.
    state: BTreeMap<String, bool>,
    loaded: Vec<Module>,
}

impl Resolver<'_> {
    /// Depth first; recursion is bounded because every level enters a new name into `state`.
    fn visit(&mut self, name: &str) -> Result<(), Error> {
        match self.state.get(name) {
            Some(true) => return Ok(()),
            Some(false) => {
                return Err(Error::Cycle {
                    name: name.to_owned(),
                });
            }
            None => {}
        }
        // A module that is built in may also be left over as a file; the kernel would refuse to load it again.
        let Some(path) = self
            .tree
            .files
            .get(name)
            .filter(|_| !self.tree.builtin.contains(name))
        else {
            return Ok(());
        };
        if self.state.len() >= RESULT_LIMIT {
            return Err(Error::TooMany { limit: RESULT_LIMIT });
        }
        self.state.insert(name.to_owned(), false);
        let bytes = read_module(path)?;
        let info = Info::parse(path, &bytes)?;
        for dependency in &info.depends {
            if !self.tree.has(dependency) {
                return Err(Error::Missing {
                    name: dependency.clone(),
                    needed_by: Some(name.to_owned()),
                });
            }
            self.visit(dependency)?;
        }
        // Soft dependencies improve a module but it works without them; often they are aliases, such as the algorithm
        // `crc32c`, of something built in. One that is on the way already is no cycle: it will be there.
        for dependency in &info.soft_before {
            if self.tree.has(dependency) && self.state.get(dependency) != Some(&false) {
                self.visit(dependency)?;
            }
        }
        self.state.insert(name.to_owned(), true);
        self.loaded.push(Module {
            name: name.to_owned(),
            bytes,
        });
        Ok(())
    }
}

/// What a module says about itself: `key=value` strings, each ended by NUL.
#[derive(Debug, Default, PartialEq, Eq)]
struct Info {
    depends: Vec<String>,
    soft_before: Vec<String>,
}

impl Info {
    fn parse(path: &Path, module: &[u8]) -> Result<Self, Error> {
        let section = Elf::parse(module)
            .and_then(|elf| elf.section(".modinfo"))
            .map_err(|source| Error::Elf {
                path: path.to_owned(),
                source,
            })?
            .ok_or_else(|| Error::NoInfo {
                path: path.to_owned(),
            })?;
        let mut info = Self::default();
        for field in section.split(|byte| *byte == 0) {
            let Ok(field) = std::str::from_utf8(field) else {
                continue;
            };
            match field.split_once('=') {
                Some(("depends", names)) => {
                    info.depends
                        .extend(names.split(',').filter(|name| !name.is_empty()).map(normalise));
                }
                Some(("softdep", text)) => info.soft_before.extend(softdep_before(text)),
                Some(_) | None => {}
            }
        }
        Ok(info)
    }
}

/// The names after `pre:` of a soft dependency such as `pre: a b post: c` (modprobe.d(5)).
fn softdep_before(text: &str) -> impl Iterator<Item = String> {
    let mut before = false;
    text.split_ascii_whitespace().filter_map(move |word| match word {
        "pre:" => {
            before = true;
            None
        }
        "post:" => {
            before = false;
            None
        }
        name => before.then(|| normalise(name)),
    })
}

fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

/// `virtio-blk.ko.xz` is the module `virtio_blk`; anything else is no module.
fn module_name(file_name: &str) -> Option<String> {
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|end| file_name.strip_suffix(end))?;
    (!stem.is_empty()).then(|| normalise(stem))
}

fn read_builtin(path: &Path) -> Result<BTreeSet<String>, Error> {
    let bytes = match read_limited(path, LIST_LIMIT) {
        Ok(bytes) => bytes,
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&bytes);
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            line.rsplit('/')
                .next()
                .and_then(module_name)
                .ok_or_else(|| Error::MalformedLine {
                    path: path.to_owned(),
                    line: index + 1,
                    text: line.chars().take(80).collect(),
                })
        })
        .collect()
}

fn read_module(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = read_limited(path, MODULE_LIMIT)?;
    match decompress::detect(&bytes) {
        Some(format) => {
            decompress::to_vec(format, &bytes, MODULE_LIMIT).map_err(|source| Error::Decompress {
                path: path.to_owned(),
                source,
            })
        }
        None => Ok(bytes),
    }
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
    if read as u64 > limit {
        Err(Error::TooLarge {
            path: path.to_owned(),
            limit,
        })
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn module(depends: &str, softdep: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0softdep={softdep}\0name=x\0");
        elf::tests::build(62, &[(".modinfo", info.as_bytes())])
    }

    fn tree(modules: &[(&str, Vec<u8>)], builtin: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kernel/drivers")).unwrap();
        for (name, bytes) in modules {
            fs::write(dir.path().join("kernel/drivers").join(name), bytes).unwrap();
        }
        fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
        dir
    }

    fn required<'a>(names: &[&'a str]) -> Vec<Wanted<'a>> {
        names.iter().map(|name| Wanted { name, required: true }).collect()
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_builtins_not_at_all() {
        let gz = {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&module("virtio-ring,crc16", "")).unwrap();
            encoder.finish().unwrap()
        };
        let dir = tree(
            &[
                ("virtio-blk.ko.gz", gz),
                ("virtio_ring.ko", module("virtio", "")),
                ("virtio.ko", module("", "pre: helper crc32c post: later")),
                ("helper.ko", module("", "")),
                ("later.ko", module("", "")),
                ("notes.txt", b"x".to_vec()),
            ],
            "kernel/lib/crc16.ko\nkernel/fs/ext4/ext4.ko\n",
        );
        let tree = ModuleTree::open(dir.path()).unwrap();
        let wanted = [
            required(&["virtio_blk", "ext4"]),
            vec![Wanted {
                name: "absent",
                required: false,
            }],
        ]
        .concat();
        let modules = tree.resolve(&wanted).unwrap();
        assert_eq!(names(&modules), ["helper", "virtio", "virtio_ring", "virtio_blk"]);
        assert!(modules.iter().all(|module| module.bytes.starts_with(b"\x7fELF")));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tree(
            &[
                ("a.ko", module("b", "")),
                ("c.ko", module("d", "")),
                ("d.ko", module("c", "")),
            ],
            "",
        );
        let tree = ModuleTree::open(dir.path()).unwrap();
        let error = |name| tree.resolve(&required(&[name])).unwrap_err().to_string();
        assert_eq!(error("x-y"), "kernel has no module x_y");
        assert_eq!(error("a"), "kernel has no module b, needed by a");
        assert_eq!(error("c"), "module c depends on itself");
    }

    #[test]
    fn malformed_files_are_named() {
        let dir = tree(
            &[("a.ko", b"text".to_vec()), ("b.ko", elf::tests::build(62, &[]))],
            "",
        );
        let tree = ModuleTree::open(dir.path()).unwrap();
        assert!(matches!(tree.resolve(&required(&["a"])), Err(Error::Elf { .. })));
        assert!(matches!(
            tree.resolve(&required(&["b"])),
            Err(Error::NoInfo { .. })
        ));
        fs::write(dir.path().join("modules.builtin"), "kernel/a.ko\nnonsense\n").unwrap();
        let error = ModuleTree::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::MalformedLine { line: 2, .. }), "{error}");
        assert!(matches!(
            ModuleTree::open(&dir.path().join("none")),
            Err(Error::Read { .. })
        ));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tree(&[], "");
        std::os::unix::fs::symlink("/", dir.path().join("build")).unwrap();
        assert!(ModuleTree::open(dir.path()).unwrap().files.is_empty());
    }

    proptest! {
        /// Any acyclic graph: module `n` depends on some of those below it.
        #[test]
        fn every_module_comes_after_its_dependencies(
            edges in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..24)
        ) {
            let depends: Vec<Vec<usize>> = edges
                .iter()
                .enumerate()
                .map(|(n, picks)| picks.iter().filter(|_| n > 0).map(|pick| pick.index(n.max(1))).collect())
                .collect();
            let modules: Vec<(String, Vec<u8>)> = depends
                .iter()
                .enumerate()
                .map(|(n, on)| {
                    let on: Vec<_> = on.iter().map(|d| format!("m{d}")).collect();
                    (format!("m{n}.ko"), module(&on.join(","), ""))
                })
                .collect();
            let modules: Vec<_> = modules.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
            let dir = tree(&modules, "");
            let top = format!("m{}", depends.len() - 1);
            let loaded = ModuleTree::open(dir.path()).unwrap().resolve(&required(&[&top])).unwrap();
            let position = |n: usize| loaded.iter().position(|m| m.name == format!("m{n}"));
            for (n, on) in depends.iter().enumerate() {
                if let Some(at) = position(n) {
                    for dependency in on {
                        prop_assert!(position(*dependency).is_some_and(|before| before < at));
                    }
                }
            }
            prop_assert_eq!(loaded.last().map(|m| m.name.clone()), Some(top));
        }

        #[test]
        fn hostile_modules_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let elf = [b"\x7fELF\x02\x01".as_slice(), &bytes].concat();
            drop(Info::parse(Path::new("x"), &elf));
        }
    }
}
