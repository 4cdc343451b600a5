//! Drives the makers of kernels and images by hand, for those who work on them; the product's way is `banger image`.
//!
//! `cargo run -p banger-engine --example image -- kernel DIR PACKAGE` and so on; see `main`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_engine::image::kernel::{self, KernelFiles};
use banger_engine::image::work::{Progress, Reporter};
use banger_engine::image::{busybox, debian, initramfs, rootfs};
use hostkit::decompress;
use hostkit::digest::Digest;
use hostkit::rootfs_tar::Limits;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let dirs: Vec<PathBuf> = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .map(PathBuf::from)
    .into();
    let options = debian::DebianOptions::default();
    let started = Instant::now();
    let progress = Reporter::new(
        move |Progress {
                  stage,
                  message,
                  done,
                  total,
              }| {
            let amount = match (done, total) {
                (Some(done), Some(total)) => format!(" {done}/{total}"),
                (Some(done), None) => format!(" {done}"),
                (None, _) => String::new(),
            };
            eprintln!(
                "{:8.3} {stage}: {message}{amount}",
                started.elapsed().as_secs_f64()
            );
        },
    );
    match arguments.as_slice() {
        ["kernel-deb", dir, package] => {
            println!(
                "{:#?}",
                kernel::add_from_deb(Path::new(dir), package, kernel::Follow::Depends, &dirs, &progress)
                    .await?
            );
        }
        ["kernel-file", dir, file] => {
            println!(
                "{:#?}",
                kernel::add_from_file(Path::new(dir), Path::new(file), None, &progress).await?
            );
        }
        ["initramfs", dir, agent, kernel] => {
            println!(
                "{:#?}",
                initramfs::build(Path::new(dir), Path::new(agent), &KernelFiles::new(kernel))?
            );
        }
        ["busybox", dir] => {
            println!(
                "{:#?}",
                busybox::bootstrap(Path::new(dir), &dirs, &progress).await?
            );
        }
        ["debian", dir] => {
            println!(
                "{:#?}",
                debian::bootstrap(Path::new(dir), &options, &dirs, &progress).await?
            );
        }
        // What is left after the work was given up: nothing should be, a moment later.
        ["debian-dropped", dir, seconds] => {
            let patience = Duration::from_secs(seconds.parse()?);
            let work = debian::bootstrap(Path::new(dir), &options, &dirs, &progress);
            println!("{}", tokio::time::timeout(patience, work).await.is_err());
        }
        ["tar", dir, archive] => {
            let limits = Limits::default();
            println!(
                "{:#?}",
                rootfs::from_tar(Path::new(dir), Path::new(archive), limits, &dirs, &progress).await?
            );
        }
        // Of the files of an OCI image's layers, the lowest first.
        ["layers", dir, files @ ..] => {
            let layers = files.iter().map(|path| layer(Path::new(path)));
            let layers: Vec<_> = layers.collect::<Result<_, _>>()?;
            eprintln!("{:8.3} digests known", started.elapsed().as_secs_f64());
            let limits = Limits::default();
            println!(
                "{:#?}",
                rootfs::from_layers(Path::new(dir), &layers, limits, &dirs, &progress).await?
            );
        }
        ["ext4", dir, file] => {
            println!(
                "{:#?}",
                rootfs::from_ext4_file(Path::new(dir), Path::new(file), &dirs, &progress).await?
            );
        }
        _ => return Err("usage: see the source".into()),
    }
    eprintln!("{:8.3} done", started.elapsed().as_secs_f64());
    Ok(())
}

/// A layer whose digest is what it should be.
fn layer(path: &Path) -> Result<rootfs::LayerFile, Box<dyn std::error::Error>> {
    let mut head = Vec::new();
    File::open(path)?.take(8).read_to_end(&mut head)?;
    let file = BufReader::new(File::open(path)?);
    let reader: Box<dyn Read + Send> = match decompress::detect(&head) {
        Some(format) => decompress::reader(format, file)?,
        None => Box::new(file),
    };
    Ok(rootfs::LayerFile {
        path: path.to_owned(),
        packed: std::fs::metadata(path)?.len(),
        diff_id: Digest::of_reader(reader)?,
    })
}
