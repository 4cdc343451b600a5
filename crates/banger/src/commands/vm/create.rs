//! `banger vm create`: a machine, stopped unless asked otherwise.

use std::collections::BTreeSet;
use std::time::Duration;

use banger_api::client::Client;
use banger_api::types::{Operation, PublishPort, Reach, RestartPolicy, SystemDisk, VmCreate, VmmKind};
use clap::{Args, ValueEnum};
use jiff::Timestamp;

use crate::args::{Label, parse_duration, parse_moment, parse_publish, parse_size};
use crate::commands::vm::rm;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::{End, Follow, detached};
use crate::stdio;

/// The most virtual processors that the daemon gives a machine.
pub(super) const VCPUS: i64 = 32;

/// Create a machine
///
/// Takes the same short time whatever the image's size. The machine is stopped unless --start is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm create dev --image debian
  banger vm create dev --image debian --vcpus 4 --memory 4GiB --disk 40GiB --start
  banger vm create dev --image debian --work-disk 20GiB --autostart --restart on-failure
  banger vm create ci --image busybox --label team=infra --vmm qemu --ttl 2h
  banger vm create ci --image busybox --start --detach
  banger vm create web --image debian -p 8080:80 -p 127.0.0.1:5353:53/udp
")]
pub(crate) struct Create {
    /// Name of the machine: 1 to 63 of a-z, 0-9 and -, beginning with a letter
    #[arg(value_name = "NAME")]
    name: String,
    /// Image to start from
    #[arg(long, value_name = "IMAGE")]
    image: String,
    #[command(flatten)]
    machine: MachineArgs,
    /// Start it, and remove it again when the start fails
    #[arg(long)]
    start: bool,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What a machine is made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// Virtual processors [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=VCPUS))]
    vcpus: Option<u32>,
    /// Memory with a unit, such as 512M or 2GiB [default: the configuration's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// System disk with a unit, such as 10GiB; takes space as it is used [default: the configuration's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk: Option<u64>,
    /// How the system disk is made [default: the configuration's]
    #[arg(long, value_enum, value_name = "KIND")]
    system_disk: Option<SystemDiskArg>,
    /// Disk of its own for the user's home, which a reset leaves alone; 0 for none [default: the configuration's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size_or_none)]
    work_disk: Option<u64>,
    /// Kernel, by name [default: the image's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Virtual machine monitor [default: chosen at each start by what the host can do]
    #[arg(long, value_enum, value_name = "VMM")]
    vmm: Option<VmmArg>,
    /// Label it; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Label>,
    /// Make a port of the guest reachable at the host: [[ADDRESS:]HOST:]GUEST[/udp]; can be given several times
    #[arg(short, long, value_name = "HOST:GUEST", value_parser = parse_publish)]
    publish: Vec<PublishPort>,
    #[command(flatten)]
    nat: NatArgs,
    /// What else the guest may reach on the bridge: guests, host, lan, several with commas [default: none]
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    allow: Vec<AllowArg>,
    /// Start it when the host has booted
    #[arg(long)]
    autostart: bool,
    /// When to start it again after it ended by itself [default: no]
    #[arg(long, value_enum, value_name = "POLICY")]
    restart: Option<RestartArg>,
    #[command(flatten)]
    expiry: ExpiryArgs,
}

/// Whether the guest may reach what its host reaches.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct NatArgs {
    /// Let the guest reach what its host reaches; the default
    #[arg(long, overrides_with = "no_nat")]
    nat: bool,
    /// Keep the guest from reaching it
    #[arg(long)]
    no_nat: bool,
}

impl NatArgs {
    /// What was asked for, if anything was.
    pub(crate) fn asked(self) -> Option<bool> {
        match (self.nat, self.no_nat) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        }
    }
}

/// What a guest on the bridge may reach, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AllowArg {
    /// Other machines that allow it too
    Guests,
    /// Services of the host
    Host,
    /// The host's own networks, and all private ones
    Lan,
    /// Nothing of these
    None,
}

/// What was asked for, if anything was.
pub(crate) fn allowed(asked: &[AllowArg]) -> Result<Option<BTreeSet<Reach>>, CliError> {
    if asked.is_empty() {
        return Ok(None);
    }
    let reach: BTreeSet<Reach> = asked
        .iter()
        .filter_map(|asked| match asked {
            AllowArg::Guests => Some(Reach::Guests),
            AllowArg::Host => Some(Reach::Host),
            AllowArg::Lan => Some(Reach::Lan),
            AllowArg::None => None,
        })
        .collect();
    if asked.contains(&AllowArg::None) && !reach.is_empty() {
        return Err(CliError::usage("--allow none goes with nothing else"));
    }
    Ok(Some(reach))
}

/// When a machine is removed.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ExpiryArgs {
    /// Remove it this long from now, such as 90m, 12h or 7d, whatever it does
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "expires")]
    ttl: Option<Duration>,
    /// Remove it at this time: `YYYY-MM-DD HH:MM` of this host's clock, or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    expires: Option<Timestamp>,
}

impl ExpiryArgs {
    /// When, if that was asked for.
    pub(crate) fn expires(self, now: Timestamp) -> Result<Option<Timestamp>, CliError> {
        let Some(ttl) = self.ttl else {
            return Ok(self.expires);
        };
        // Whole seconds, and never too soon: people read it.
        let whole = |time: Timestamp| Timestamp::from_second(time.as_second().saturating_add(1));
        match now.checked_add(ttl).and_then(whole) {
            Ok(expires) => Ok(Some(expires)),
            Err(_) => Err(CliError::usage("--ttl is beyond the end of the clock")),
        }
    }
}

/// A size, or `0` for none at all.
fn parse_size_or_none(text: &str) -> Result<u64, crate::args::SizeError> {
    match text {
        "0" => Ok(0),
        text => parse_size(text),
    }
}

/// Virtual machine monitors.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum VmmArg {
    Firecracker,
    Qemu,
}

impl From<VmmArg> for VmmKind {
    fn from(vmm: VmmArg) -> Self {
        match vmm {
            VmmArg::Firecracker => Self::Firecracker,
            VmmArg::Qemu => Self::Qemu,
        }
    }
}

/// Ways to make a system disk.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum SystemDiskArg {
    /// The configuration's choice; by itself, what the host can do best
    Auto,
    /// A disk of the guest's own, stacked over the image; needs nothing of the host
    Overlay,
    /// A file that shares the image's blocks, on XFS and btrfs
    Reflink,
    /// A device-mapper snapshot; needs root
    Dm,
}

/// Restart policies.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RestartArg {
    /// Never
    No,
    /// When it crashed
    OnFailure,
    /// Also when the guest shut itself down
    Always,
}

impl From<RestartArg> for RestartPolicy {
    fn from(policy: RestartArg) -> Self {
        match policy {
            RestartArg::No => Self::No,
            RestartArg::OnFailure => Self::OnFailure,
            RestartArg::Always => Self::Always,
        }
    }
}

impl MachineArgs {
    /// What to ask of the daemon.
    pub(crate) fn create(self, name: Option<String>, image: String) -> Result<VmCreate, CliError> {
        Ok(VmCreate {
            name,
            image,
            vcpus: self.vcpus,
            memory: self.memory,
            disk: self.disk,
            kernel: self.kernel,
            vmm: self.vmm.map(VmmKind::from),
            labels: self
                .label
                .into_iter()
                .map(|label| (label.key, label.value))
                .collect(),
            start: false,
            ephemeral: false,
            system_disk: match self.system_disk {
                None | Some(SystemDiskArg::Auto) => None,
                Some(SystemDiskArg::Overlay) => Some(SystemDisk::Overlay),
                Some(SystemDiskArg::Reflink) => Some(SystemDisk::Reflink),
                Some(SystemDiskArg::Dm) => Some(SystemDisk::Dm),
            },
            work_disk: self.work_disk,
            nat: self.nat.asked(),
            allow: allowed(&self.allow)?.unwrap_or_default(),
            autostart: self.autostart,
            restart: self.restart.map(RestartPolicy::from).unwrap_or_default(),
            expires: self.expiry.expires(Timestamp::now())?,
            publish: self.publish,
        })
    }
}

impl Create {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let params = VmCreate {
            start: self.start,
            ..self.machine.create(Some(self.name), self.image)?
        };
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let follow = Follow::cancelling(self.quiet, self.detach);
        match follow
            .to_end(&client, &mut interrupts, client.vm_create(params))
            .await?
        {
            End::Done(created) => stdio::finish(&format!("{}\n", created.subject)),
            End::TooLate(created) => discard(&client, &mut interrupts, created).await,
            End::Detached(operation) => detached(&operation),
        }
    }
}

/// Removes a machine that was made in spite of a signal, which came too late to cancel it: whoever interrupts a create
/// does not want the machine, and nothing can be in it yet.
pub(crate) async fn discard(
    client: &Client,
    interrupts: &mut Interrupts,
    created: Operation,
) -> Result<u8, CliError> {
    let name = created.subject;
    rm::force(client, interrupts, name.clone()).await?;
    Err(CliError::interrupted(format!("cancelled: vm.create of {name}")))
}
