//! The block devices of machines: what they are called, that one is made or removed at a time, and which are left of
//! machines that no longer run.
//!
//! A device is known by its name alone: `bgrID` and `bgrID-base` of the device mapper, and the mark of a loop device,
//! `bgrID-base@SCOPE` or `bgrID-cow@SCOPE`. The scope is the state directory's, so that one daemon does not take another's
//! devices for orphans; a device-mapper device has it in its identifier.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hostkit::digest::Digest;
use hostkit::dm::Dm;
use hostkit::loopdev;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::error::{Error, io};
use crate::host::Host;
use crate::id;

/// Present while the kernel has a device mapper at all: asking for it any other way would load one.
const DEVICE_MAPPER: &str = "/sys/class/misc/device-mapper";

/// Making and removing of one machine's devices exclude each other: a start that is cancelled leaves a thread at work,
/// and the removal that follows must find what that makes. Machines share these by chance, and that does no harm.
static AT_WORK: [Mutex<()>; 32] = [const { Mutex::const_new(()) }; 32];

/// A block device of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Device {
    /// Of the device mapper.
    Mapped {
        /// Its name.
        name: String,
    },
    /// A loop device, whatever its number.
    Loop {
        /// Its mark.
        mark: String,
    },
}

impl Device {
    /// The machine that it is of, where its name is one of ours.
    pub(crate) fn vm(&self) -> Option<&str> {
        let (name, roles): (&str, &[&str]) = match self {
            Self::Mapped { name } => (name, &["", "-base"]),
            Self::Loop { mark } => (mark.split_once('@')?.0, &["-base", "-cow"]),
        };
        roles
            .iter()
            .find_map(|role| id::of_token(name.strip_suffix(role)?))
    }

    /// Its name, for people.
    pub(crate) fn shown(&self) -> &str {
        match self {
            Self::Mapped { name } => name,
            Self::Loop { mark } => mark,
        }
    }
}

/// The names of one machine's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// The image, as long as the disk.
    pub(super) base: String,
    /// What the machine gets.
    pub(super) snapshot: String,
    /// The image's loop device.
    pub(super) base_loop: String,
    /// That of the machine's own file.
    pub(super) cow_loop: String,
    scope: String,
}

impl Names {
    pub(super) fn new(host: &Host, vm: &str) -> Result<Self, Error> {
        let token = id::token(vm);
        let scope = scope(&host.settings.state_dir)?;
        Ok(Self {
            base: format!("{token}-base"),
            base_loop: format!("{token}-base@{scope}"),
            cow_loop: format!("{token}-cow@{scope}"),
            snapshot: token,
            scope,
        })
    }

    /// The identifier of a device-mapper device.
    pub(super) fn uuid(&self, name: &str) -> String {
        uuid(&self.scope, name)
    }

    /// All of them, what is above before what is below.
    pub(super) fn devices(&self) -> [Device; 4] {
        [
            Device::Mapped {
                name: self.snapshot.clone(),
            },
            Device::Mapped {
                name: self.base.clone(),
            },
            Device::Loop {
                mark: self.cow_loop.clone(),
            },
            Device::Loop {
                mark: self.base_loop.clone(),
            },
        ]
    }
}

fn uuid(scope: &str, name: &str) -> String {
    format!("BANGER-{scope}-{name}")
}

/// What tells a state directory from all others for as long as the host runs, which is as long as devices live: where
/// its inode is.
pub(crate) fn scope(state_dir: &Path) -> Result<String, Error> {
    let found = std::fs::metadata(state_dir).map_err(io("look at", state_dir))?;
    let digest = Digest::of_bytes(format!("{}:{}", found.dev(), found.ino()).as_bytes());
    let bytes = digest.as_bytes().iter().take(8);
    Ok(bytes.map(|byte| format!("{byte:02x}")).collect())
}

/// Does something with a machine's devices in a thread that may block, alone.
pub(super) async fn alone<T: Send + 'static>(
    vm: &str,
    action: &'static str,
    work: impl FnOnce() -> Result<T, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
) -> Result<T, Error> {
    let fail = |source| Error::Host { action, source };
    let index = vm.bytes().fold(0_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    let guard = AT_WORK[index % AT_WORK.len()].lock().await;
    let done = tokio::task::spawn_blocking(move || {
        let _held = guard;
        work()
    });
    done.await.map_err(|e| fail(Box::new(e)))?.map_err(fail)
}

/// Removes a device; one that is gone already is fine. A name that is none of ours is refused: a row must never make us
/// remove anything else.
pub(crate) async fn remove(device: &Device) -> Result<(), Error> {
    let action = "remove a block device";
    let Some(vm) = device.vm() else {
        return Err(Error::Host {
            action,
            source: format!("{:?} is no device that banger makes", device.shown()).into(),
        });
    };
    let device = device.clone();
    let vm = vm.to_owned();
    alone(&vm, action, move || match &device {
        Device::Mapped { .. } if !Path::new(DEVICE_MAPPER).exists() => Ok(()),
        Device::Mapped { name } => Ok(Dm::open()?.remove(name)?),
        Device::Loop { mark } => Ok(loopdev::detach(mark)?),
    })
    .await
}

/// The devices of this state directory's machines that are there now, what is above before what is below. Those of
/// machines that run are among them. Nothing where we are not root, who alone makes any.
pub(crate) async fn present(state_dir: &Path) -> Result<Vec<Device>, Error> {
    let action = "look for block devices";
    if !rustix::process::geteuid().is_root() {
        return Ok(Vec::new());
    }
    let scope = scope(state_dir)?;
    let fail = |source| Error::Host { action, source };
    let listed = tokio::task::spawn_blocking(move || {
        let mut mapped = mapped(&scope)?;
        // A snapshot's name is the beginning of its base's.
        mapped.sort_by_key(|device| device.shown().len());
        let loops = loopdev::list().into_iter().filter_map(|device| {
            let ours = device.mark.split_once('@').is_some_and(|(_, of)| of == scope);
            let device = Device::Loop { mark: device.mark };
            (ours && device.vm().is_some()).then_some(device)
        });
        mapped.extend(loops);
        Ok(mapped)
    });
    listed.await.map_err(|e| fail(Box::new(e)))?.map_err(fail)
}

fn mapped(scope: &str) -> Result<Vec<Device>, Box<dyn std::error::Error + Send + Sync>> {
    if !Path::new(DEVICE_MAPPER).exists() {
        return Ok(Vec::new());
    }
    let dm = Dm::open()?;
    let mut found = Vec::new();
    for name in dm.list()? {
        let expected = uuid(scope, &name);
        let device = Device::Mapped { name };
        if device.vm().is_some() && dm.find(device.shown())?.is_some_and(|d| d.uuid == expected) {
            found.push(device);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(name: &str) -> Device {
        Device::Mapped {
            name: name.to_owned(),
        }
    }

    fn loop_device(mark: &str) -> Device {
        Device::Loop {
            mark: mark.to_owned(),
        }
    }

    #[test]
    fn a_devices_name_says_whose_it_is_and_others_names_say_nothing() {
        for ours in [
            mapped("bgrabcdefghij"),
            mapped("bgrabcdefghij-base"),
            loop_device("bgrabcdefghij-base@0123"),
            loop_device("bgrabcdefghij-cow@0123"),
        ] {
            assert_eq!(ours.vm(), Some("abcdefghij"), "{ours:?}");
        }
        for other in [
            mapped("vg-root"),
            mapped("bgrabcdefghij-cow"),
            mapped("bgrabcdefghij-base-base"),
            mapped("bgrABCDEFGHIJ"),
            mapped(""),
            loop_device("/var/lib/disk.img"),
            loop_device("bgrabcdefghij-base"),
            loop_device("bgrabcdefghij@0123"),
        ] {
            assert_eq!(other.vm(), None, "{other:?}");
        }
    }

    #[test]
    fn two_state_directories_have_two_scopes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(scope(one.path()).unwrap(), scope(one.path()).unwrap());
        assert_ne!(scope(one.path()).unwrap(), scope(two.path()).unwrap());
        // The longest mark still fits the kernel's field.
        let mark = format!("bgrabcdefghij-base@{}", scope(one.path()).unwrap());
        assert!(mark.len() <= loopdev::MARK, "{mark}");
    }

    #[tokio::test]
    async fn a_loop_device_that_was_left_is_found_by_its_mark_alone_and_removed() {
        if !testkit::is_root() {
            return;
        }
        let (ours, anothers) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = ours.path().join("cow-0.img");
        std::fs::write(&file, vec![0; 1 << 20]).unwrap();
        let vm = id::new();
        let mark = format!("{}-cow@{}", id::token(&vm), scope(ours.path()).unwrap());
        if let Err(e) = loopdev::attach(&file, &mark, loopdev::Access::Direct) {
            testkit::skip::<()>(&crate::error::chain(&e));
            return;
        }
        let found = present(ours.path()).await.unwrap();
        let others = present(anothers.path()).await.unwrap();
        for device in &found {
            remove(device).await.unwrap();
        }
        assert_eq!(found, [loop_device(&mark)]);
        assert_eq!(found[0].vm(), Some(vm.as_str()));
        assert!(others.is_empty(), "{others:?}");
        assert!(present(ours.path()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_not_ours_is_never_removed() {
        for device in [mapped("vg-root"), loop_device("/var/lib/disk.img")] {
            let refused = remove(&device).await.unwrap_err();
            assert!(crate::error::chain(&refused).contains("no device that banger makes"));
        }
        // Gone, or never made: nothing to do, with and without a device mapper.
        if testkit::is_root() {
            remove(&mapped("bgrabcdefghij")).await.unwrap();
            remove(&loop_device("bgrabcdefghij-cow@0123")).await.unwrap();
        }
    }
}
