//! `banger vm set`: changes a machine, and says what of it applies now.

use std::collections::BTreeMap;

use banger_api::client::Client;
use banger_api::types::{Applies, RestartPolicy, Vm, VmChange, VmRef, VmReset, VmSet, VmSetReply, VmmPin};
use clap::{ArgGroup, Args, ValueEnum};
use jiff::Timestamp;

use super::create::{AllowArg, ExpiryArgs, NatArgs, RestartArg, VCPUS, allowed};
use crate::args::{Label, LabelKey, parse_size};
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::{End, Follow, too_late};
use crate::output::Format;
use crate::stdio::{self, say};
use crate::table;

/// Change a machine
///
/// Prints each setting that changed, and whether it applies now or when the machine is started next. Disks only grow.
/// --image renews the system disk, as `banger vm reset` does.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("settings").required(true).multiple(true).args([
        "vcpus", "memory", "disk", "work_disk", "kernel", "vmm", "image", "label", "unlabel", "nat", "no_nat", "allow",
        "autostart", "no_autostart", "restart", "ttl", "expires", "no_expiry",
    ]),
    after_help = "\
Examples:
  banger vm set dev --memory 4GiB --vcpus 4
  banger vm set dev --disk 40GiB
  banger vm set dev --no-nat --allow guests,host
  banger vm set dev --label team=infra --unlabel stage
  banger vm set dev --autostart --restart on-failure --no-expiry
  banger vm set dev --image debian-next --force
"
)]
pub(crate) struct Set {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// Virtual processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=VCPUS))]
    vcpus: Option<u32>,
    /// Memory with a unit, such as 512M or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Grow the system disk to this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk: Option<u64>,
    /// Grow the work disk to this size; a machine without one gets one
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    work_disk: Option<u64>,
    /// Kernel, by name
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Pin the virtual machine monitor, or with auto no longer
    #[arg(long, value_enum, value_name = "VMM")]
    vmm: Option<PinArg>,
    /// Move it to this image: its system disk is renewed, its work disk stays
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// With --image: stop the machine where it runs, and start it again
    #[arg(short, long, requires = "image")]
    force: bool,
    /// Label it; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Label>,
    /// Take a label away; can be given several times
    #[arg(long, value_name = "KEY")]
    unlabel: Vec<LabelKey>,
    #[command(flatten)]
    nat: NatArgs,
    /// All that the guest may reach on the bridge: guests, host, lan, several with commas; or none
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    allow: Vec<AllowArg>,
    /// Start it when the host has booted
    #[arg(long, overrides_with = "no_autostart")]
    autostart: bool,
    /// Leave it stopped when the host has booted
    #[arg(long)]
    no_autostart: bool,
    /// When to start it again after it ended by itself
    #[arg(long, value_enum, value_name = "POLICY")]
    restart: Option<RestartArg>,
    #[command(flatten)]
    expiry: ExpiryArgs,
    /// Never remove it by time
    #[arg(long, conflicts_with_all = ["ttl", "expires"])]
    no_expiry: bool,
    /// Format of the result: for people, or the daemon's own types
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

/// Which virtual machine monitor it shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PinArg {
    Auto,
    Firecracker,
    Qemu,
}

impl From<PinArg> for VmmPin {
    fn from(pin: PinArg) -> Self {
        match pin {
            PinArg::Auto => Self::Auto,
            PinArg::Firecracker => Self::Firecracker,
            PinArg::Qemu => Self::Qemu,
        }
    }
}

impl Set {
    pub(crate) async fn run(mut self, context: &Context) -> Result<u8, CliError> {
        let (image, force, output) = (self.image.take(), self.force, self.output);
        let params = self.params(Timestamp::now())?;
        let client = context.client().await?;
        let vm = params.vm.clone();
        let only_image = params
            == VmSet {
                vm: vm.clone(),
                ..VmSet::default()
            };
        let mut reply = match only_image {
            true => VmSetReply {
                vm: client.vm_show(VmRef { vm: vm.clone() }).await?,
                changes: Vec::new(),
                notices: Vec::new(),
            },
            false => client.vm_set(params).await?,
        };
        if let Some(image) = image
            && let Err(error) = reset(&client, &vm, image, force, &mut reply).await
        {
            // What was done before it failed is the user's to know.
            if !reply.changes.is_empty() {
                print(&reply, output)?;
            }
            return Err(error);
        }
        print(&reply, output)
    }

    fn params(self, now: Timestamp) -> Result<VmSet, CliError> {
        let mut labels: BTreeMap<String, Option<String>> = BTreeMap::new();
        for Label { key, value } in self.label {
            labels.insert(key, Some(value));
        }
        for LabelKey(key) in self.unlabel {
            if labels.insert(key.clone(), None).is_some() {
                return Err(CliError::usage(format!("label {key} is both set and taken away")));
            }
        }
        let allow = allowed(&self.allow)?;
        Ok(VmSet {
            vm: self.vm,
            vcpus: self.vcpus,
            memory: self.memory,
            disk: self.disk,
            work_disk: self.work_disk,
            kernel: self.kernel,
            vmm: self.vmm.map(VmmPin::from),
            labels,
            nat: self.nat.asked(),
            allow,
            autostart: match (self.autostart, self.no_autostart) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            },
            restart: self.restart.map(RestartPolicy::from),
            expires: self.expiry.expires(now)?,
            no_expiry: self.no_expiry,
        })
    }
}

/// Moves the machine to another image, and enters that among the changes.
async fn reset(
    client: &Client,
    vm: &str,
    image: String,
    force: bool,
    reply: &mut VmSetReply,
) -> Result<(), CliError> {
    let mut interrupts = Interrupts::listen()?;
    let params = VmReset {
        vm: vm.to_owned(),
        image: Some(image),
        force,
    };
    let end = Follow::cancelling(false, false)
        .to_end(client, &mut interrupts, client.vm_reset(params))
        .await;
    if let Ok(End::Detached(operation)) = &end {
        say!("{} goes on as operation {}", operation.kind, operation.id);
        return Ok(());
    }
    // Also where it failed: it may have moved, and not come up again.
    let vm = vm.to_owned();
    match (client.vm_show(VmRef { vm }).await, &end) {
        (Ok(vm), _) => moved(reply, vm),
        (Err(error), Ok(_)) => return Err(error.into()),
        // The first error says more.
        (Err(_), Err(_)) => {}
    }
    match end? {
        End::Done(_) | End::Detached(_) => Ok(()),
        End::TooLate(operation) => Err(too_late(&operation)),
    }
}

/// Enters the machine as it is now, and its image among the changes.
fn moved(reply: &mut VmSetReply, vm: Vm) {
    let before = std::mem::replace(&mut reply.vm, vm);
    if before.image_id != reply.vm.image_id {
        reply.changes.push(VmChange {
            setting: "image".into(),
            from: before.image,
            to: reply.vm.image.clone(),
            applies: Applies::Now,
            reason: None,
        });
    }
}

fn print(reply: &VmSetReply, output: Format) -> Result<u8, CliError> {
    for notice in &reply.notices {
        say!("note: {notice}");
    }
    if reply.changes.is_empty() && output == Format::Table {
        say!("nothing changed: {} is so already", reply.vm.name);
        return stdio::finish("");
    }
    output.print(reply, render)
}

fn render(reply: &VmSetReply) -> String {
    let row = |change: &VmChange| {
        let applies = match (change.applies, &change.reason) {
            (Applies::Now, _) => "now".to_owned(),
            (Applies::NextStart, None) => "at next start".to_owned(),
            (Applies::NextStart, Some(reason)) => format!("at next start ({reason})"),
        };
        [
            change.setting.clone(),
            change.from.clone(),
            change.to.clone(),
            applies,
        ]
    };
    table::render(
        ["SETTING", "FROM", "TO", "APPLIES"],
        reply.changes.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;
    use crate::commands::Command;
    use crate::commands::vm;

    fn params(words: &str) -> Result<VmSet, String> {
        let words = ["banger", "vm", "set", "dev"]
            .into_iter()
            .chain(words.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Vm(vm::Vm::Set(set)) = cli.command else {
            panic!("not a set")
        };
        let now = "2026-02-01T00:00:00Z".parse().unwrap();
        set.params(now).map_err(|error| error.message)
    }

    #[test]
    fn only_what_was_named_is_asked_for() {
        let empty = VmSet {
            vm: "dev".into(),
            ..VmSet::default()
        };
        assert_eq!(
            params("--memory 2G --vcpus 3"),
            Ok(VmSet {
                memory: Some(2 << 30),
                vcpus: Some(3),
                ..empty.clone()
            })
        );
        assert_eq!(
            params("--label a=1 --unlabel b --no-nat --autostart --restart on-failure --ttl 1h"),
            Ok(VmSet {
                labels: [("a".into(), Some("1".into())), ("b".into(), None)].into(),
                nat: Some(false),
                autostart: Some(true),
                restart: Some(RestartPolicy::OnFailure),
                expires: Some("2026-02-01T01:00:01Z".parse().unwrap()),
                ..empty.clone()
            })
        );
        assert_eq!(
            params("--no-nat --nat").map(|set| set.nat),
            Ok(Some(true)),
            "the last counts"
        );
        assert_eq!(params("--vmm auto").map(|set| set.vmm), Ok(Some(VmmPin::Auto)));
        assert_eq!(params("--no-expiry").map(|set| set.no_expiry), Ok(true));
        assert_eq!(
            params("--label a=1 --unlabel a"),
            Err("label a is both set and taken away".into())
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in [
            "",
            "--force",
            "--ttl 1h --expires 2026-02-02T00:00:00Z",
            "--ttl 1h --no-expiry",
            "--memory 512",
            "--restart sometimes",
            "--label Team=x",
            "--unlabel a=b",
            "--expires yesterday",
        ] {
            assert!(params(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn changes() {
        let change = |setting: &str, from: &str, to: &str, reason: Option<&str>| VmChange {
            setting: setting.into(),
            from: from.into(),
            to: to.into(),
            applies: match reason {
                Some(_) => Applies::NextStart,
                None => Applies::Now,
            },
            reason: reason.map(Into::into),
        };
        let reply = VmSetReply {
            vm: super::super::show::example(true),
            changes: vec![
                change(
                    "memory",
                    "1GiB",
                    "2GiB",
                    Some("a VMM's memory is fixed while it runs"),
                ),
                change("label team", "infra", "web", None),
            ],
            notices: Vec::new(),
        };
        insta::assert_snapshot!(render(&reply), @r"
        SETTING      FROM    TO     APPLIES
        memory       1GiB    2GiB   at next start (a VMM's memory is fixed while it runs)
        label team   infra   web    now
        ");
    }
}
