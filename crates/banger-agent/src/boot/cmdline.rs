//! The kernel command line: `banger.*` says what to boot, `module.param=value` goes to modules.
//!
//! | parameter          | meaning                                                    |
//! |--------------------|------------------------------------------------------------|
//! | `banger.root`      | block device with the image's ext4; required               |
//! | `banger.overlay`   | block device with the VM's own ext4; absent: root is read-write |
//! | `banger.work`      | `DEVICE:HOME`: block device whose contents lie over that home directory |
//! | `banger.hostname`  | the guest's name                                           |
//! | `banger.init`      | `agent`, or an absolute path in the image; absent: as the image has it |
//! | `banger.traces`    | `none`: the disk becomes an image, so the guest's name and resolver are not written to it |
//! | `banger.net`       | `IFACE,ADDRESS/PREFIX[,GATEWAY[,DNS]][,OPTION…]`, IPv4     |
//!
//! Options of `banger.net`: `mtu=BYTES`, `search=DOMAIN` (tried after a name without a dot), `inet6=off` (the card gets no
//! IPv6 address, not even a link-local one).
//!
//! The line comes from the daemon, but a user may add to it: a value that makes no sense stops the boot with its name, an
//! unknown `banger.` parameter (a newer daemon's) is a warning.

use std::ffi::CString;
use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// Who becomes process 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InitChoice {
    /// The image's init where it has a real one, else the agent.
    Auto,
    Agent,
    Path(PathBuf),
}

/// The guest's one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Net {
    pub(super) interface: String,
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Option<Ipv4Addr>,
    /// Largest packet in bytes, where it is not the kernel's choice.
    pub(super) mtu: Option<u16>,
    /// The domain that names without a dot are in.
    pub(super) search: Option<String>,
    /// Whether the card may have IPv6 addresses.
    pub(super) inet6: bool,
}

/// The work disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) device: PathBuf,
    /// Absolute; not the root.
    pub(super) home: PathBuf,
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BootSpec {
    pub(super) root: PathBuf,
    pub(super) overlay: Option<PathBuf>,
    pub(super) work: Option<Work>,
    pub(super) hostname: Option<String>,
    pub(super) init: InitChoice,
    pub(super) net: Option<Net>,
    /// The guest's name and resolver are not to be found on its disk afterwards.
    pub(super) traceless: bool,
    /// Parameters which this agent does not know.
    pub(super) unknown: Vec<String>,
}

/// Why a command line cannot be booted from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommandLineError {
    #[error("find out what to boot: the kernel command line has no {key}")]
    Missing { key: &'static str },
    #[error("understand {key}={value:?} on the kernel command line: it is not {expected}")]
    Invalid {
        key: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("understand the kernel command line: {key} is there twice")]
    Twice { key: &'static str },
}

const ROOT: &str = "banger.root";
const OVERLAY: &str = "banger.overlay";
const WORK: &str = "banger.work";
const HOSTNAME: &str = "banger.hostname";
const INIT: &str = "banger.init";
const NET: &str = "banger.net";
const TRACES: &str = "banger.traces";
const NET_FORM: &str =
    "INTERFACE,ADDRESS/PREFIX[,GATEWAY[,DNS]] and options mtu=BYTES, search=DOMAIN, inet6=off";

/// Splits a command line as the kernel does: at white space, except within double quotes, which are dropped. What
/// follows `--` is init's (kernel-parameters.txt).
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut begun = false;
    for c in line.chars().chain([' ']) {
        match c {
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            c if c.is_ascii_whitespace() && !quoted => {
                if begun && word == "--" {
                    return words;
                }
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if quoted && begun {
        // An unclosed quote reaches to the end; the blank that was added is not part of it.
        word.pop();
        words.push(word);
    }
    words
}

/// Reads the `banger.` parameters.
pub(super) fn parse(line: &str) -> Result<BootSpec, CommandLineError> {
    let mut unknown = Vec::new();
    let (mut root, mut overlay, mut work) = (None, None, None);
    let (mut hostname, mut init, mut net) = (None, None, None);
    let mut traceless = None;
    for word in words(line) {
        let (key, value) = word.split_once('=').unwrap_or((word.as_str(), ""));
        match key {
            ROOT => once(ROOT, &mut root, device(ROOT, value)?)?,
            OVERLAY => once(OVERLAY, &mut overlay, device(OVERLAY, value)?)?,
            WORK => once(WORK, &mut work, work_disk(value)?)?,
            HOSTNAME => once(HOSTNAME, &mut hostname, host_name(value)?)?,
            INIT => once(INIT, &mut init, init_choice(value)?)?,
            NET => once(NET, &mut net, network(value)?)?,
            TRACES if value == "none" => once(TRACES, &mut traceless, true)?,
            TRACES => return Err(invalid(TRACES, value, "none")),
            key if key.starts_with("banger.") => unknown.push(word),
            _ => {}
        }
    }
    Ok(BootSpec {
        root: root.ok_or(CommandLineError::Missing { key: ROOT })?,
        overlay,
        work,
        hostname,
        init: init.unwrap_or(InitChoice::Auto),
        net,
        traceless: traceless.unwrap_or_default(),
        unknown,
    })
}

/// The parameters of a module, as finit_module(2) wants them: `name=value name=value`.
///
/// As in the kernel, `-` and `_` in names are the same, and a parameter may come several times.
pub(super) fn module_parameters(line: &str, module: &str) -> CString {
    let same = |a: &str, b: &str| a.replace('-', "_") == b.replace('-', "_");
    let mut parameters = String::new();
    for word in words(line) {
        let Some((name, parameter)) = word.split_once('.') else {
            continue;
        };
        if !same(name, module) || parameter.is_empty() {
            continue;
        }
        if !parameters.is_empty() {
            parameters.push(' ');
        }
        match parameter.split_once('=') {
            Some((key, value)) if value.contains(char::is_whitespace) => {
                parameters.push_str(&format!("{key}=\"{value}\""));
            }
            Some(_) | None => parameters.push_str(parameter),
        }
    }
    // A NUL cannot come from the kernel.
    CString::new(parameters).unwrap_or_default()
}

fn once<T>(key: &'static str, slot: &mut Option<T>, value: T) -> Result<(), CommandLineError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(CommandLineError::Twice { key }),
    }
}

fn invalid(key: &'static str, value: &str, expected: &'static str) -> CommandLineError {
    CommandLineError::Invalid {
        key,
        value: value.to_owned(),
        expected,
    }
}

fn device(key: &'static str, value: &str) -> Result<PathBuf, CommandLineError> {
    let name = value.strip_prefix("/dev/").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !name.is_empty() && name.len() <= 32 && name.bytes().all(plain) {
        Ok(PathBuf::from(value))
    } else {
        Err(invalid(key, value, "a device like /dev/vda"))
    }
}

fn work_disk(value: &str) -> Result<Work, CommandLineError> {
    let wrong = || invalid(WORK, value, "DEVICE:HOME, like /dev/vdc:/home/dev");
    let (name, home) = value.split_once(':').ok_or_else(wrong)?;
    let device = device(WORK, name).map_err(|_| wrong())?;
    let home = absolute(home).ok_or_else(wrong)?;
    Ok(Work { device, home })
}

/// An absolute path below the root, without `.` and `..`.
fn absolute(value: &str) -> Option<PathBuf> {
    let path = Path::new(value);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // Made anew from its components: without doubled slashes, and one at the end.
    (path.is_absolute() && plain && path.file_name().is_some()).then(|| path.components().collect())
}

/// One label of RFC 1123, in lower case or upper.
fn host_name(value: &str) -> Result<String, CommandLineError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let edges = value.starts_with('-') || value.ends_with('-');
    if (1..=63).contains(&value.len()) && !edges && value.bytes().all(plain) {
        Ok(value.to_owned())
    } else {
        Err(invalid(
            HOSTNAME,
            value,
            "a host name of letters, digits and hyphens",
        ))
    }
}

fn init_choice(value: &str) -> Result<InitChoice, CommandLineError> {
    if value == "agent" {
        return Ok(InitChoice::Agent);
    }
    absolute(value)
        .map(InitChoice::Path)
        .ok_or_else(|| invalid(INIT, value, "\"agent\" or an absolute path"))
}

fn network(value: &str) -> Result<Net, CommandLineError> {
    let wrong = || invalid(NET, value, NET_FORM);
    let is_option = |field: &str| field.contains('=');
    let places = value.split(',').take_while(|field| !is_option(field));
    let options = value.split(',').skip_while(|field| !is_option(field));
    let mut fields = places;
    let interface = fields.next().unwrap_or_default();
    // IFNAMSIZ is 16 with the NUL.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let named = (1..16).contains(&interface.len()) && interface.bytes().all(plain);
    let (address, prefix) = fields
        .next()
        .and_then(|field| field.split_once('/'))
        .ok_or_else(wrong)?;
    let prefix = Some(prefix)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .filter(|prefix| (1..=32).contains(prefix))
        .ok_or_else(wrong)?;
    let optional = |field: Option<&str>| match field {
        None | Some("") => Ok(None),
        Some(field) => Ipv4Addr::from_str(field).map(Some).map_err(|_| wrong()),
    };
    let gateway = optional(fields.next())?;
    let dns = optional(fields.next())?;
    if !named || interface == "." || interface == ".." || fields.next().is_some() {
        return Err(wrong());
    }
    let address = Ipv4Addr::from_str(address).map_err(|_| wrong())?;
    let mut net = Net {
        interface: interface.to_owned(),
        address,
        prefix,
        gateway,
        dns,
        mtu: None,
        search: None,
        inet6: true,
    };
    for option in options {
        match option.split_once('=') {
            // Below 68 bytes IPv4 does not work (RFC 791).
            Some(("mtu", bytes)) => {
                let mtu = bytes.parse().ok().filter(|mtu| *mtu >= 68);
                net.mtu = Some(mtu.ok_or_else(wrong)?);
            }
            Some(("search", domain)) if is_domain(domain) => net.search = Some(domain.to_owned()),
            Some(("inet6", "off")) => net.inet6 = false,
            Some(_) | None => return Err(wrong()),
        }
    }
    Ok(net)
}

/// Labels of letters, digits and hyphens with dots between them (RFC 1123, 2.1).
fn is_domain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_whole_line() {
        let spec = parse(
            "console=ttyS0 panic=-1 banger.root=/dev/vda banger.overlay=/dev/vdb banger.hostname=dev-1 \
             banger.work=/dev/vdc:/home/dev banger.init=agent banger.net=eth0,10.0.2.15/24,10.0.2.2,10.0.2.3 banger.later=x -- banger.root=/dev/vdc\n",
        );
        let net = Net {
            interface: "eth0".to_owned(),
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
            mtu: None,
            search: None,
            inet6: true,
        };
        let expected = BootSpec {
            root: "/dev/vda".into(),
            overlay: Some("/dev/vdb".into()),
            work: Some(Work {
                device: "/dev/vdc".into(),
                home: "/home/dev".into(),
            }),
            hostname: Some("dev-1".to_owned()),
            init: InitChoice::Agent,
            net: Some(net),
            traceless: false,
            unknown: vec!["banger.later=x".to_owned()],
        };
        assert_eq!(spec, Ok(expected));
    }

    #[test]
    fn the_least() {
        let spec = parse("banger.root=/dev/vda").expect("enough");
        assert_eq!(
            (spec.init, spec.overlay, spec.work, spec.net),
            (InitChoice::Auto, None, None, None)
        );
        assert_eq!(
            parse("root=/dev/vda"),
            Err(CommandLineError::Missing { key: ROOT })
        );
    }

    #[test]
    fn mistakes_are_named() {
        for wrong in [
            "banger.root=vda",
            "banger.root=/dev/../etc",
            "banger.root=/dev/",
            "banger.root",
            "banger.overlay=/dev/vd.b",
            "banger.work=/dev/vdc",
            "banger.work=/dev/vdc:",
            "banger.work=/dev/vdc:/",
            "banger.work=/dev/vdc:root",
            "banger.work=/dev/vdc:/home/../etc",
            "banger.work=vdc:/root",
            "banger.work=:/root",
            "banger.hostname=",
            "banger.hostname=-a",
            "banger.hostname=a.b",
            "banger.init=init",
            "banger.init=/",
            "banger.init=/sbin/../init",
            "banger.net=eth0",
            "banger.net=eth0,10.0.2.15",
            "banger.net=eth0,10.0.2.15/0",
            "banger.net=eth0,10.0.2.15/33",
            "banger.net=eth0,10.0.2.15/+24",
            "banger.net=,10.0.2.15/24",
            "banger.net=a/b,10.0.2.15/24",
            "banger.net=eth0,10.0.2.15/24,1,2,3",
            "banger.net=eth0,10.0.2.15/24,mtu=67",
            "banger.net=eth0,10.0.2.15/24,mtu=65536",
            "banger.net=eth0,10.0.2.15/24,search=",
            "banger.net=eth0,10.0.2.15/24,search=a..b",
            "banger.net=eth0,10.0.2.15/24,search=a_b",
            "banger.net=eth0,10.0.2.15/24,inet6=on",
            "banger.net=eth0,10.0.2.15/24,other=1",
            "banger.net=eth0,10.0.2.15/24,mtu=1500,10.0.2.2",
            "banger.net=eth0,mtu=1500",
        ] {
            let root = if wrong.starts_with(ROOT) {
                ""
            } else {
                "banger.root=/dev/vda "
            };
            let line = format!("{root}{wrong}");
            assert!(
                matches!(parse(&line), Err(CommandLineError::Invalid { .. })),
                "{wrong}"
            );
        }
        let twice = parse("banger.root=/dev/vda banger.root=/dev/vdb");
        assert_eq!(twice, Err(CommandLineError::Twice { key: ROOT }));
    }

    #[test]
    fn gateway_and_dns_may_be_left_out() {
        let net = network("eth0,172.16.0.2/30").expect("enough");
        assert_eq!((net.gateway, net.dns), (None, None));
        let net = network("eth0,172.16.0.2/30,,1.1.1.1").expect("no gateway");
        assert_eq!((net.gateway, net.dns), (None, Some(Ipv4Addr::new(1, 1, 1, 1))));
        assert_eq!((net.mtu, net.search, net.inet6), (None, None, true));
    }

    #[test]
    fn options_follow_what_there_is() {
        let net =
            network("eth0,10.209.0.2/20,10.209.0.1,10.209.0.1,search=vm,mtu=1400,inet6=off").expect("valid");
        assert_eq!(net.dns, Some(Ipv4Addr::new(10, 209, 0, 1)));
        assert_eq!(
            (net.mtu, net.search.as_deref(), net.inet6),
            (Some(1400), Some("vm"), false)
        );
        let net = network("eth0,10.209.0.2/20,mtu=9000").expect("valid");
        assert_eq!((net.gateway, net.mtu), (None, Some(9000)));
    }

    #[test]
    fn modules_get_their_parameters() {
        let line = "virtio_mmio.device=4K@0xd0000000:5 quiet virtio-mmio.device=4K@0xd0001000:6 \
                    dm_mod.create=\"a b\" loop.max_loop=1 xvirtio_mmio.device=no";
        assert_eq!(
            module_parameters(line, "virtio_mmio").to_str(),
            Ok("device=4K@0xd0000000:5 device=4K@0xd0001000:6")
        );
        assert_eq!(module_parameters(line, "dm-mod").to_str(), Ok("create=\"a b\""));
        assert_eq!(module_parameters(line, "overlay").to_str(), Ok(""));
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in "(banger\\.(root|overlay|work|init|net|hostname|x)=?[/a-z0-9.,:\"-]{0,12}[ \n\"]?){0,6}") {
            if let Ok(spec) = parse(&line) {
                prop_assert!(spec.root.starts_with("/dev") && spec.root.components().count() == 3);
                if let InitChoice::Path(path) = spec.init {
                    prop_assert!(path.is_absolute());
                }
                if let Some(work) = spec.work {
                    prop_assert!(work.device.starts_with("/dev") && work.home.components().count() > 1);
                }
            }
        }

        #[test]
        fn arbitrary_text_never_panics(line in "\\PC{0,200}", module in "[a-z_-]{1,8}") {
            let _either = parse(&line);
            let parameters = module_parameters(&line, &module);
            prop_assert!(parameters.as_bytes().len() <= line.len() + 2 * line.len());
        }

        #[test]
        fn good_values_are_kept(name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", a: [u8; 4], prefix in 1u8..=32) {
            let address = Ipv4Addr::from(a);
            let spec = parse(&format!("x banger.root=/dev/vda banger.hostname={name} banger.net=eth0,{address}/{prefix}"));
            let spec = spec.expect("valid");
            prop_assert_eq!(spec.hostname, Some(name));
            prop_assert_eq!(spec.net.map(|net| (net.address, net.prefix)), Some((address, prefix)));
        }
    }
}
