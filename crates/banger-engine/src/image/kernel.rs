//! Kernels: a name, a kernel image in the forms that the machine monitors boot, and the modules its initramfs needs.
//!
//! A kernel comes from a file or from a Debian package, and becomes a directory, whole or not at all:
//!
//! ```text
//! kernels/NAME/vmlinux          ELF; what Firecracker boots
//! kernels/NAME/vmlinuz          the bzImage it was unpacked from, if it was; what QEMU boots
//! kernels/NAME/modules/*.ko     uncompressed
//! kernels/NAME/modules/order    their names in load order, one a line
//! ```
//!
//! Of the modules only those in [`MODULES`] and what they need are kept, about 1 MB of 90: the initramfs is there to
//! find disks and host, and a guest that wants more installs its kernel's package. What is known *about* a kernel is
//! returned as [`Kernel`] for the caller to keep; building the initramfs is the next step, [`super::initramfs`].

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hostkit::deb::{self, DebTools};
use hostkit::digest::Digest;
use hostkit::exec::ExecError;
use hostkit::modules::{self, Module, ModuleTree, Wanted};
use hostkit::vmlinuz::{self, Format};

use super::work::{self, Cancel, Published, Reporter, WorkDir};

/// What a guest needs before its root is mounted, and what every guest has at hand. The buses of QEMU's `q35` (PCI),
/// of its `microvm` and of Firecracker (MMIO); disk, network and vsock; the two file systems. A kernel may have any of
/// them built in. The optional ones improve a guest and are not worth failing for: `crc32c_generic` is what ext4
/// verifies checksums with and reached only by an alias.
const MODULES: [Wanted<'static>; 10] = [
    required("virtio_mmio"),
    optional("virtio_pci"),
    required("virtio_blk"),
    optional("crc32c_generic"),
    required("ext4"),
    required("overlay"),
    required("vmw_vsock_virtio_transport"),
    optional("virtio_net"),
    optional("virtio_rng"),
    optional("virtio_balloon"),
];

const fn required(name: &'static str) -> Wanted<'static> {
    Wanted { name, required: true }
}

const fn optional(name: &'static str) -> Wanted<'static> {
    Wanted {
        name,
        required: false,
    }
}

/// Why a kernel could not be added.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file, or one beside it, cannot be read.
    #[error("failed to read kernel {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not a kernel that can be booted.
    #[error("failed to use kernel {}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: vmlinuz::Error,
    },
    /// Its modules are missing or damaged.
    #[error("failed to collect the modules of kernel {}", path.display())]
    Modules {
        /// The kernel.
        path: PathBuf,
        /// The cause.
        #[source]
        source: modules::Error,
    },
    /// A program for handling packages is not installed.
    #[error("Debian's package tools are needed to add a kernel from a package")]
    NoPackageTools(#[source] Box<ExecError>),
    /// The package could not be fetched or unpacked.
    #[error("failed to get kernel package {package}")]
    Package {
        /// Name or path, as asked for.
        package: String,
        /// The cause.
        #[source]
        source: deb::Error,
    },
    /// The package, and the one it depends on, holds no kernel.
    #[error("package {package} holds no kernel (no boot/vmlinuz-* in it)")]
    NoKernelInPackage {
        /// Name or path, as asked for.
        package: String,
    },
    /// The target exists.
    #[error("kernel {} exists already", path.display())]
    Exists {
        /// The target directory.
        path: PathBuf,
    },
    /// The result cannot be stored.
    #[error("failed to store kernel {}", path.display())]
    Store {
        /// The target directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What is known about a kernel that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, such as `6.1.0-18-cloud-amd64`, where the image tells.
    pub release: Option<String>,
    /// What form the source file had. Either way there is an ELF `vmlinux` afterwards.
    pub format: Format,
    /// Of the source file.
    pub sha256: Digest,
    /// What it takes on disk, in bytes.
    pub size: u64,
    /// The modules kept, by file name in load order; none where the kernel has everything built in.
    pub modules: Vec<String>,
    /// Its ELF form can be booted by QEMU. A `vmlinuz` always can.
    pub pvh: bool,
    /// Where it came from, for people: the file's path, or package and version.
    pub source: String,
}

/// Where the parts of a kernel are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFiles {
    dir: PathBuf,
}

impl KernelFiles {
    /// The kernel in `dir`, which is not looked at yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The ELF image; every kernel has one.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The compressed image; only there where the kernel came as one.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The directory of modules.
    #[must_use]
    pub fn modules_dir(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// Names and paths of the modules, in load order.
    pub fn modules(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let dir = self.modules_dir();
        let order = fs::read_to_string(dir.join("order"))?;
        Ok(order
            .lines()
            .map(|name| (name.to_owned(), dir.join(name)))
            .collect())
    }

    /// Checks that the parts are there and look right, without reading them all; for checks before a start.
    pub fn check(&self) -> Result<(), KernelError> {
        let path = self.vmlinux();
        let mut head = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(64).read_to_end(&mut head))
            .map_err(|source| KernelError::Read {
                path: path.clone(),
                source,
            })?;
        if !head.starts_with(b"\x7fELF") {
            return Err(KernelError::Image {
                path,
                source: vmlinuz::Error::NotAKernel,
            });
        }
        for (_, path) in self.modules().map_err(|source| KernelError::Read {
            path: self.modules_dir(),
            source,
        })? {
            fs::metadata(&path).map_err(|source| KernelError::Read {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

/// Adds the kernel in `source` (ELF `vmlinux` or `bzImage`) as the directory `target`.
///
/// `modules` is its `…/lib/modules/RELEASE`; without, the kernel is taken to have all it needs built in. Stages:
/// `unpack`, `modules`, `store`.
pub async fn add_from_file(
    target: &Path,
    source: &Path,
    modules: Option<&Path>,
    progress: &Reporter,
) -> Result<Kernel, KernelError> {
    let work = new_work(target)?;
    let plan = Plan {
        work,
        target: target.to_owned(),
        image: source.to_owned(),
        modules: modules.map(Path::to_owned),
        source: source.display().to_string(),
        progress: progress.clone(),
    };
    let (kernel, published) = work::blocking(move |cancel| plan.carry_out(cancel)).await?;
    published.keep();
    Ok(kernel)
}

/// Whether another package is fetched where the first holds no kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// The kernel that it depends on, as `linux-image-cloud-amd64` does.
    Depends,
    /// None: what was pinned is all that may come.
    Nothing,
}

/// Adds the kernel in a file that was downloaded: what [`add_from_file`] takes, or a Debian package that holds one.
pub async fn add_from_download(
    target: &Path,
    file: &Path,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Kernel, KernelError> {
    // deb(5): an ar archive.
    const AR: &[u8] = b"!<arch>\n";
    let mut head = Vec::new();
    File::open(file)
        .and_then(|file| file.take(AR.len() as u64).read_to_end(&mut head))
        .map_err(|source| KernelError::Read {
            path: file.to_owned(),
            source,
        })?;
    if head == AR {
        let package = file.to_string_lossy();
        add_from_deb(target, &package, Follow::Nothing, tool_dirs, progress).await
    } else {
        add_from_file(target, file, None, progress).await
    }
}

/// Adds a kernel from a Debian package as the directory `target`.
///
/// `package` is a `.deb` file if it has a slash or ends so, else a package's name, fetched with apt. A package that
/// only depends on the current kernel leads to that one, where it is to be followed. `tool_dirs` is where
/// programs are looked for. Stages: `download`, then those of [`add_from_file`].
pub async fn add_from_deb(
    target: &Path,
    package: &str,
    follow: Follow,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Kernel, KernelError> {
    let package_error = |source| KernelError::Package {
        package: package.to_owned(),
        source,
    };
    let tools = DebTools::find(tool_dirs).map_err(|source| KernelError::NoPackageTools(Box::new(source)))?;
    let work = new_work(target)?;
    let fetch = async |name: &str, into: &str| {
        progress.step("download", format!("fetching {name}"));
        let report = progress.clone();
        tools
            .download(name, &work.path().join(into), move |line| {
                report.step("download", line);
            })
            .await
            .map_err(package_error)
    };

    let mut deb = if package.contains('/') || package.ends_with(".deb") {
        PathBuf::from(package)
    } else {
        fetch(package, "deb-0").await?
    };
    let root = work.path().join("root");
    // The package itself, or the one kernel that it depends on; no chain is longer.
    let mut image = None;
    for attempt in ["deb-1", "deb-2"] {
        progress.step("unpack", format!("unpacking {}", file_name(&deb)));
        tools.unpack(&deb, &root).await.map_err(package_error)?;
        image = find_image(&root)?;
        if image.is_some() || follow == Follow::Nothing {
            break;
        }
        let depends = tools.field(&deb, "Depends").await.map_err(package_error)?;
        match deb::dependencies(&depends)
            .iter()
            .find(|name| name.starts_with("linux-image-"))
        {
            Some(name) if attempt == "deb-1" => deb = fetch(name, attempt).await?,
            Some(_) | None => break,
        }
    }
    let (image, modules) = image.ok_or_else(|| KernelError::NoKernelInPackage {
        package: package.to_owned(),
    })?;
    let name = tools.field(&deb, "Package").await.map_err(package_error)?;
    let version = tools.field(&deb, "Version").await.map_err(package_error)?;
    let plan = Plan {
        work,
        target: target.to_owned(),
        image,
        modules,
        source: format!("Debian package {name} {version}"),
        progress: progress.clone(),
    };
    let (kernel, published) = work::blocking(move |cancel| plan.carry_out(cancel)).await?;
    published.keep();
    Ok(kernel)
}

/// Everything that is needed to turn a kernel image into the directory of a kernel.
struct Plan {
    work: WorkDir,
    target: PathBuf,
    image: PathBuf,
    modules: Option<PathBuf>,
    source: String,
    progress: Reporter,
}

impl Plan {
    fn carry_out(self, cancel: &Cancel) -> Result<(Kernel, Published), KernelError> {
        let path = &self.image;
        let image_error = |source| KernelError::Image {
            path: path.clone(),
            source,
        };
        self.progress
            .step("unpack", format!("reading {}", file_name(path)));
        let image = read_image(path)?;
        let format = vmlinuz::detect(&image).map_err(image_error)?;
        let vmlinux = match format {
            Format::Elf => None,
            Format::BzImage => Some(vmlinuz::extract(&image).map_err(image_error)?),
        };
        let elf = vmlinuz::check_elf(vmlinux.as_ref().unwrap_or(&image)).map_err(image_error)?;
        self.check(cancel)?;

        let modules = match &self.modules {
            None => Vec::new(),
            Some(dir) => {
                self.progress.step("modules", "collecting modules");
                ModuleTree::open(dir)
                    .and_then(|tree| tree.resolve(&MODULES))
                    .map_err(|source| KernelError::Modules {
                        path: path.clone(),
                        source,
                    })?
            }
        };
        self.check(cancel)?;

        self.progress.step("store", "storing the kernel");
        let modules_len: usize = modules.iter().map(|module| module.bytes.len()).sum();
        let len = image.len() + vmlinux.as_ref().map_or(0, Vec::len) + modules_len;
        let kernel = Kernel {
            release: vmlinuz::release(&image),
            format,
            sha256: Digest::of_bytes(&image),
            size: len as u64,
            modules: modules.iter().map(module_file).collect(),
            pvh: elf.pvh,
            source: self.source.clone(),
        };
        let files = KernelFiles::new(self.work.path().join("new"));
        let published = write(&files, &image, vmlinux.as_deref(), &modules)
            .and_then(|()| cancel.check())
            .and_then(|()| self.work.publish("new", &self.target))
            .map_err(|source| self.store_error(source))?;
        Ok((kernel, published))
    }

    fn check(&self, cancel: &Cancel) -> Result<(), KernelError> {
        cancel.check().map_err(|source| self.store_error(source))
    }

    fn store_error(&self, source: io::Error) -> KernelError {
        let path = self.target.clone();
        if source.kind() == io::ErrorKind::AlreadyExists {
            KernelError::Exists { path }
        } else {
            KernelError::Store { path, source }
        }
    }
}

fn new_work(target: &Path) -> Result<WorkDir, KernelError> {
    let path = target.to_owned();
    if fs::symlink_metadata(target).is_ok() {
        return Err(KernelError::Exists { path });
    }
    WorkDir::beside(target).map_err(|source| KernelError::Store { path, source })
}

fn write(files: &KernelFiles, image: &[u8], vmlinux: Option<&[u8]>, modules: &[Module]) -> io::Result<()> {
    let dir = files.modules_dir();
    fs::create_dir_all(&dir)?;
    match vmlinux {
        Some(vmlinux) => {
            fs::write(files.vmlinux(), vmlinux)?;
            fs::write(files.vmlinuz(), image)?;
        }
        None => fs::write(files.vmlinux(), image)?,
    }
    for module in modules {
        fs::write(dir.join(module_file(module)), &module.bytes)?;
    }
    let order: String = modules.iter().map(|module| module_file(module) + "\n").collect();
    fs::write(dir.join("order"), order)
}

fn module_file(module: &Module) -> String {
    format!("{}.ko", module.name)
}

fn read_image(path: &Path) -> Result<Vec<u8>, KernelError> {
    let read_error = |source| KernelError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    // A fifo or a device named by mistake must not be read for ever.
    if !file.metadata().map_err(read_error)?.is_file() {
        return Err(read_error(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    let read = file
        .take(vmlinuz::VMLINUX_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if read as u64 > vmlinuz::VMLINUX_LIMIT {
        return Err(read_error(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// The kernel in an unpacked package and its modules. Links are not followed: a package could point them anywhere.
fn find_image(root: &Path) -> Result<Option<(PathBuf, Option<PathBuf>)>, KernelError> {
    let only = |dir: PathBuf, wanted: &dyn Fn(&fs::FileType, &str) -> bool| -> io::Result<Option<PathBuf>> {
        if !fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir()) {
            return Ok(None);
        }
        let mut found = None;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if wanted(&entry.file_type()?, &entry.file_name().to_string_lossy()) {
                found = Some(entry.path());
            }
        }
        Ok(found)
    };
    let find = || -> io::Result<_> {
        let is_image = |kind: &fs::FileType, name: &str| kind.is_file() && name.starts_with("vmlinuz-");
        let Some(image) = only(root.join("boot"), &is_image)? else {
            return Ok(None);
        };
        let mut modules = None;
        for lib in ["lib/modules", "usr/lib/modules"] {
            modules = modules.or(only(root.join(lib), &|kind, _| kind.is_dir())?);
        }
        Ok(Some((image, modules)))
    };
    find().map_err(|source| KernelError::Read {
        path: root.to_owned(),
        source,
    })
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A kernel directory with these modules, for the tests of what comes after.
    pub(crate) fn kernel_with_modules(dir: &Path, modules: &[(&str, &[u8])]) -> KernelFiles {
        let modules: Vec<_> = modules
            .iter()
            .map(|(name, bytes)| Module {
                name: name.trim_end_matches(".ko").to_owned(),
                bytes: bytes.to_vec(),
            })
            .collect();
        let files = KernelFiles::new(dir);
        write(&files, &minimal_elf(), None, &modules).unwrap();
        files
    }

    /// An x86-64 ELF header and one `PT_LOAD` segment in the kernel's half of the address space.
    fn minimal_elf() -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2;
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        elf[64 + 23] = 0xff;
        elf
    }

    #[tokio::test]
    async fn an_elf_file_becomes_a_kernel_without_modules() {
        let top = tempfile::tempdir().unwrap();
        let source = top.path().join("vmlinux");
        fs::write(&source, minimal_elf()).unwrap();
        let target = top.path().join("kernels/plain");
        let kernel = add_from_file(&target, &source, None, &Reporter::silent())
            .await
            .unwrap();
        assert_eq!(kernel.format, Format::Elf);
        assert_eq!(kernel.sha256, Digest::of_bytes(&minimal_elf()));
        assert!(kernel.modules.is_empty() && !kernel.pvh);
        let files = KernelFiles::new(&target);
        files.check().unwrap();
        assert!(!files.vmlinuz().exists());
        assert!(files.modules().unwrap().is_empty());

        let again = add_from_file(&target, &source, None, &Reporter::silent())
            .await
            .unwrap_err();
        assert!(matches!(again, KernelError::Exists { .. }), "{again}");
        assert_eq!(
            fs::read_dir(top.path().join("kernels")).unwrap().count(),
            1,
            "nothing unfinished is left"
        );
    }

    #[tokio::test]
    async fn what_is_no_kernel_is_refused_and_leaves_nothing() {
        let top = tempfile::tempdir().unwrap();
        let kernels = top.path().join("kernels");
        let text = top.path().join("text");
        fs::write(&text, "hello").unwrap();
        let add = async |source: &Path| {
            add_from_file(&kernels.join("k"), source, None, &Reporter::silent())
                .await
                .unwrap_err()
        };
        assert!(matches!(
            add(&text).await,
            KernelError::Image {
                source: vmlinuz::Error::NotAKernel,
                ..
            }
        ));
        assert!(matches!(
            add(&top.path().join("none")).await,
            KernelError::Read { .. }
        ));
        assert!(matches!(
            add(Path::new("/dev/zero")).await,
            KernelError::Read { .. }
        ));
        assert!(matches!(add(top.path()).await, KernelError::Read { .. }));
        assert_eq!(fs::read_dir(&kernels).unwrap().count(), 0);
    }

    /// Fetches 27 MB where apt knows the package.
    #[tokio::test]
    async fn debians_kernel_package_becomes_a_kernel() {
        let dirs = ["/usr/bin", "/bin"].map(PathBuf::from);
        let top = tempfile::tempdir().unwrap();
        let kernels = top.path().join("kernels");
        let silent = Reporter::silent();
        let target = kernels.join("cloud");
        let kernel = match add_from_deb(
            &target,
            "linux-image-cloud-amd64",
            Follow::Depends,
            &dirs,
            &silent,
        )
        .await
        {
            Err(error @ KernelError::NoPackageTools(_)) => {
                testkit::skip::<()>(&error.to_string());
                return;
            }
            // No lists or no mirror; a package that came is held to what follows.
            Err(KernelError::Package {
                source: source @ (deb::Error::Unknown { .. } | deb::Error::Command { .. }),
                ..
            }) => {
                testkit::skip::<()>(&source.to_string());
                return;
            }
            result => result.unwrap(),
        };
        assert_eq!(kernel.format, Format::BzImage);
        assert!(
            kernel.pvh
                && kernel
                    .release
                    .is_some_and(|release| release.ends_with("cloud-amd64"))
        );
        let position = |name: &str| kernel.modules.iter().position(|module| module == name);
        assert!(position("virtio.ko") < position("virtio_blk.ko"));
        for needed in [
            "virtio_mmio.ko",
            "virtio_pci.ko",
            "overlay.ko",
            "vmw_vsock_virtio_transport.ko",
        ] {
            assert!(position(needed).is_some(), "{needed}");
        }
        let files = KernelFiles::new(&target);
        files.check().unwrap();
        assert!(files.vmlinuz().exists());
        assert_eq!(
            fs::read_dir(&kernels).unwrap().count(),
            1,
            "nothing unfinished is left"
        );
    }

    #[test]
    fn a_damaged_kernel_is_noticed_before_a_start() {
        let top = tempfile::tempdir().unwrap();
        let files = kernel_with_modules(top.path(), &[("a.ko", b"a")]);
        files.check().unwrap();
        fs::remove_file(top.path().join("modules/a.ko")).unwrap();
        assert!(
            matches!(files.check(), Err(KernelError::Read { path, .. }) if path.ends_with("modules/a.ko"))
        );
        fs::write(files.vmlinux(), "").unwrap();
        assert!(matches!(files.check(), Err(KernelError::Image { .. })));
    }
}
