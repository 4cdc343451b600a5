//! Whether this host can run guests on its processor, and what to do about it where it cannot.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// The version that KVM has reported since Linux 2.6.22 (`KVM_GET_API_VERSION`, Documentation/virt/kvm/api.rst);
/// applications refuse every other.
const KVM_API_VERSION: i32 = 12;

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostVirtualization {
    /// `/dev/kvm` opens, speaks the API, and the processor shows the feature.
    Usable,
    /// `/dev/kvm` opens and speaks the API, but the processor shows neither VMX nor SVM: whatever executes guests
    /// there, an ordinary kernel cannot count on it.
    Doubtful {
        /// What is missing and what it means.
        reason: String,
    },
    /// There is no hardware virtualization for us.
    Unusable {
        /// What is in the way.
        reason: String,
        /// What to do about it.
        fix: String,
    },
}

/// Opens `/dev/kvm` and reads `/proc/cpuinfo`; a millisecond at most.
#[must_use]
pub fn host_virtualization() -> HostVirtualization {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    judge(kvm_api_version(Path::new("/dev/kvm")), has_flag(&flags))
}

fn kvm_api_version(device: &Path) -> io::Result<i32> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(device)?;
    Ok(ioctl::api_version(file.as_fd())?)
}

/// Whether a processor lists `vmx` (Intel) or `svm` (AMD).
fn has_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_ascii_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

fn judge(version: io::Result<i32>, flag: bool) -> HostVirtualization {
    let unusable = |reason: String, fix: &str| HostVirtualization::Unusable {
        reason,
        fix: fix.to_owned(),
    };
    match version {
        Ok(KVM_API_VERSION) if flag => HostVirtualization::Usable,
        Ok(KVM_API_VERSION) => HostVirtualization::Doubtful {
            reason: "/dev/kvm opens, but the processor shows neither vmx nor svm, so ordinary guest kernels may not \
                     run on it"
                .to_owned(),
        },
        Ok(other) => unusable(
            format!("/dev/kvm speaks version {other} of its interface, not {KVM_API_VERSION}"),
            "boot the host with a distribution kernel",
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if flag {
                unusable("there is no /dev/kvm".to_owned(), "load the module: `modprobe kvm_intel` or `modprobe kvm_amd`")
            } else {
                unusable(
                    "there is no /dev/kvm and the processor shows neither vmx nor svm".to_owned(),
                    "switch on virtualization (VT-x, AMD-V) in the firmware, or nested virtualization if this host \
                     is itself a virtual machine",
                )
            }
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => unusable(
            "/dev/kvm may not be opened by this user".to_owned(),
            "add the user to the group `kvm` (`usermod -aG kvm USER`) and log in again",
        ),
        Err(error) => unusable(
            format!("/dev/kvm does not open: {error}"),
            "see `dmesg | grep -i kvm`; another hypervisor may hold the processor's virtualization",
        ),
    }
}

mod ioctl {
    //! The one ioctl that is asked here.

    use std::os::fd::BorrowedFd;

    use rustix::io::Result;
    use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

    /// `KVM_GET_API_VERSION`, `_IO(KVMIO, 0x00)` of linux/kvm.h: no argument, the version is the return value.
    struct GetApiVersion;

    // SAFETY: the opcode takes no argument (zero is passed), writes no memory, and returns a plain number.
    unsafe impl Ioctl for GetApiVersion {
        type Output = i32;
        const IS_MUTATING: bool = false;

        fn opcode(&self) -> Opcode {
            opcode::none(0xAE, 0x00)
        }

        fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
            std::ptr::null_mut()
        }

        unsafe fn output_from_ptr(out: IoctlOutput, _: *mut rustix::ffi::c_void) -> Result<i32> {
            Ok(out)
        }
    }

    pub(super) fn api_version(device: BorrowedFd<'_>) -> Result<i32> {
        // SAFETY: see the implementation above; on a device other than KVM the request fails or returns a number.
        unsafe { rustix::ioctl::ioctl(device, GetApiVersion) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words() {
        assert!(has_flag("processor : 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_flag("flags : fpu svm"));
        assert!(!has_flag("flags : fpu svm_lock xvmx\nmodel name : vmx"));
        assert!(!has_flag(""));
    }

    #[test]
    fn every_cause_has_its_own_fix() {
        let error = |kind: io::ErrorKind| Err(io::Error::from(kind));
        assert_eq!(judge(Ok(12), true), HostVirtualization::Usable);
        assert!(matches!(
            judge(Ok(12), false),
            HostVirtualization::Doubtful { .. }
        ));
        let fix = |version, flag| match judge(version, flag) {
            HostVirtualization::Unusable { fix, .. } => fix,
            other @ (HostVirtualization::Usable | HostVirtualization::Doubtful { .. }) => panic!("{other:?}"),
        };
        let fixes = [
            fix(Ok(11), true),
            fix(error(io::ErrorKind::NotFound), true),
            fix(error(io::ErrorKind::NotFound), false),
            fix(error(io::ErrorKind::PermissionDenied), true),
            fix(error(io::ErrorKind::ResourceBusy), true),
        ];
        for (index, one) in fixes.iter().enumerate() {
            assert!(!fixes[..index].contains(one), "{one}");
        }
    }

    #[test]
    fn a_file_that_is_not_kvm_is_an_error() {
        assert!(kvm_api_version(Path::new("/dev/null")).is_err());
        assert!(kvm_api_version(Path::new("/nonexistent")).is_err());
    }
}
