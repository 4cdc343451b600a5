//! The methods, each stated once. From this list come [`Service`] (what the daemon implements), the dispatcher, the
//! client's typed functions and the OpenRPC document that `rpc.discover` prints.
//!
//! Why not a general JSON-RPC framework: its traits give neither strict by-name parameters nor a document of the
//! contract nor a connection that turns into a byte stream, and these are most of what a contract crate is for.
//!
//! Three shapes of method:
//! - `call`: one answer.
//! - `subscribe`: the answer is `{"subscription": ID}`, then notifications carry events until an end or an error.
//! - `stream`: the answer is `{"stream": true}`, then the connection carries frames (see [`crate::frame`]) and no JSON.

use std::future::Future;
use std::pin::Pin;

use crate::error::RpcError;
use crate::frame::FrameStream;
use crate::types::*;

/// Who is asking: the credentials of the socket's peer (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, 0 where the kernel does not say.
    pub pid: u32,
}

/// Events of a subscription; `None` ends it. Dropped when the client goes away.
pub type Events<T> = tokio::sync::mpsc::Receiver<Result<T, RpcError>>;

/// What serves a stream once the connection has been handed over. Opening errors are answered before, as JSON.
pub type StreamHandler = Box<dyn FnOnce(FrameStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Shape of a method on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One request, one answer.
    Call,
    /// One request, many notifications.
    Subscription,
    /// The connection becomes a byte stream.
    Stream,
}

macro_rules! contract {
    (
        calls { $( $(#[doc = $cdoc:literal])+ $cname:literal $cfn:ident ($cparams:ty) -> $creply:ty; )* }
        subscriptions { $( $(#[doc = $sdoc:literal])+ $sname:literal $sfn:ident ($sparams:ty) -> $sevent:ty; )* }
        streams { $( $(#[doc = $tdoc:literal])+ $tname:literal $tfn:ident ($tparams:ty); )* }
    ) => {
        /// What the daemon implements: one function a method.
        pub trait Service: Send + Sync + 'static {
            $( $(#[doc = $cdoc])+ fn $cfn(&self, caller: Caller, params: $cparams)
                -> impl Future<Output = Result<$creply, RpcError>> + Send; )*
            $( $(#[doc = $sdoc])+ fn $sfn(&self, caller: Caller, params: $sparams)
                -> impl Future<Output = Result<Events<$sevent>, RpcError>> + Send; )*
            $( $(#[doc = $tdoc])+ fn $tfn(&self, caller: Caller, params: $tparams)
                -> impl Future<Output = Result<StreamHandler, RpcError>> + Send; )*
        }

        /// Runs one request against a service. Parameters are parsed strictly.
        pub(crate) async fn dispatch<S: Service>(
            service: &S,
            caller: Caller,
            method: &str,
            params: Option<&serde_json::value::RawValue>,
        ) -> Result<crate::server::Outcome, RpcError> {
            use crate::server::{Outcome, answer, boxed, parse_params, subscription};
            match method {
                $( $cname => {
                    let params = parse_params(method, params)?;
                    answer(boxed(|| service.$cfn(caller, params)).await?)
                } )*
                $( $sname => {
                    let params = parse_params(method, params)?;
                    Ok(subscription($sname, boxed(|| service.$sfn(caller, params)).await?))
                } )*
                $( $tname => {
                    let params = parse_params(method, params)?;
                    Ok(Outcome::Stream(boxed(|| service.$tfn(caller, params)).await?))
                } )*
                _ => Err(crate::server::unknown_method(method)),
            }
        }

        impl crate::client::Client {
            $( $(#[doc = $cdoc])+
            pub async fn $cfn(&self, params: $cparams) -> Result<$creply, crate::client::ClientError> {
                self.call($cname, &params).await
            } )*
            $( $(#[doc = $sdoc])+
            pub async fn $sfn(&self, params: $sparams)
                -> Result<crate::client::Subscription<$sevent>, crate::client::ClientError> {
                self.subscribe($sname, &params).await
            } )*
            $( $(#[doc = $tdoc])+
            pub async fn $tfn(&self, params: $tparams) -> Result<FrameStream, crate::client::ClientError> {
                self.open_stream($tname, &params).await
            } )*
        }

        /// Every method's name, in the contract's order.
        pub const METHODS: &[&str] = &[$($cname,)* $($sname,)* $($tname,)*];

        /// The shape of a method, if there is one of that name.
        pub(crate) fn shape(method: &str) -> Option<Shape> {
            match method {
                $( $cname )|* => Some(Shape::Call),
                $( $sname )|* => Some(Shape::Subscription),
                $( $tname )|* => Some(Shape::Stream),
                _ => None,
            }
        }

        /// The contract as an OpenRPC 1.3 document (<https://spec.open-rpc.org>).
        #[must_use]
        pub fn openrpc() -> serde_json::Value {
            let mut doc = crate::server::OpenRpc::new();
            $( doc.method::<$cparams, $creply>($cname, concat!($($cdoc, "\n"),+), Shape::Call); )*
            $( doc.method::<$sparams, $sevent>($sname, concat!($($sdoc, "\n"),+), Shape::Subscription); )*
            $( doc.method::<$tparams, ()>($tname, concat!($($tdoc, "\n"),+), Shape::Stream); )*
            doc.finish()
        }
    };
}

contract! {
    calls {
        /// The daemon's version, directories, VMMs and counts.
        "daemon.status" daemon_status(Empty) -> DaemonStatus;
        /// Stops the daemon in order. Machines go on running.
        "daemon.shutdown" daemon_shutdown(Empty) -> Empty;
        /// Checks the host and says how to mend what is wrong.
        "doctor.run" doctor_run(Empty) -> DoctorReport;
        /// Collects what nothing needs any more, or says what that would be.
        "gc.run" gc_run(GcRun) -> GcReport;
        /// All images.
        "image.list" image_list(Empty) -> Vec<Image>;
        /// One image, by name, id, or the beginning of its digest.
        "image.show" image_show(ImageRef) -> Image;
        /// Images by name, label, digest.
        "image.find" image_find(ImageFind) -> Vec<Image>;
        /// Gives an image another name.
        "image.tag" image_tag(ImageTag) -> Image;
        /// Takes a name away from an image, which goes with its last one; by id or digest it goes at once. Not while a machine
        /// uses it. The answer has the name that was taken, and the names that are left.
        "image.remove" image_remove(ImageRef) -> Image;
        /// Begins to register a root file system as an image: an ext4 file stays the caller's, all else is copied.
        "image.register" image_register(ImageRegister) -> Operation;
        /// Begins to copy a registered file, which is not needed any more when it is done. One that is the daemon's own
        /// already is a success.
        "image.promote" image_promote(ImageRef) -> Operation;
        /// Begins to make a bootstrap image from packages.
        "image.bootstrap" image_bootstrap(ImageBootstrap) -> Operation;
        /// Begins to get an image from a registry. One that is there and current is a success at once.
        "image.pull" image_pull(ImagePull) -> Operation;
        /// Begins to take an image out of an OCI layout or a docker archive.
        "image.import" image_import(ImageImport) -> Operation;
        /// Begins to build an image from a recipe. What is wrong with the recipe is the call's error.
        "image.build" image_build(ImageBuild) -> Operation;
        /// Empties the cache of steps that builds have done.
        "image.build_prune" image_build_prune(Empty) -> BuildCache;
        /// Begins to write an image to a file: an OCI archive, or its root file system as a tar archive.
        "image.export" image_export(ImageExport) -> Operation;
        /// Begins to read images again and compare them with their digests. Fails with what is damaged.
        "image.verify" image_verify(ImageVerify) -> Operation;
        /// How it stands with images' work seeds, which new work disks are made of.
        "image.seed_show" image_seed_show(ImageSeeds) -> Vec<ImageSeed>;
        /// Makes images' work seeds anew. Work disks that exist stay as they are.
        "image.seed_refresh" image_seed_refresh(ImageSeeds) -> Vec<ImageSeed>;
        /// Removes images that have neither a name nor a machine, and blobs that no image refers to, or says which they are.
        "image.prune" image_prune(GcRun) -> GcReport;
        /// All kernels.
        "kernel.list" kernel_list(Empty) -> Vec<Kernel>;
        /// Begins to add a kernel from a file, a Debian package or a pinned download.
        "kernel.add" kernel_add(KernelAdd) -> Operation;
        /// Removes a kernel that neither image nor machine uses.
        "kernel.remove" kernel_remove(KernelRef) -> Kernel;
        /// The kernel that images get which name none.
        "kernel.default" kernel_default(Empty) -> DefaultKernel;
        /// Chooses that. Images and machines that are there keep theirs.
        "kernel.set_default" kernel_set_default(KernelSetDefault) -> DefaultKernel;
        /// Installed versions of Firecracker, the one in use first.
        "runtime.list" runtime_list(Empty) -> Vec<Runtime>;
        /// Begins to install Firecracker for new runs. For root and the daemon's own user.
        "runtime.install" runtime_install(RuntimeInstall) -> Operation;
        /// Removes a version of Firecracker that no machine runs on. For root and the daemon's own user.
        "runtime.remove" runtime_remove(RuntimeRef) -> Runtime;
        /// Begins to create a machine, and to start it where asked.
        "vm.create" vm_create(VmCreate) -> Operation;
        /// All machines.
        "vm.list" vm_list(VmList) -> Vec<Vm>;
        /// One machine, by name or id.
        "vm.show" vm_show(VmRef) -> Vm;
        /// Begins to start a machine. Already running is a success.
        "vm.start" vm_start(VmStart) -> Operation;
        /// Begins to stop a machine: asks the guest, then forces after the timeout. Already stopped is a success.
        "vm.stop" vm_stop(VmStop) -> Operation;
        /// Ends a machine at once, as by pulling the plug.
        "vm.kill" vm_kill(VmRef) -> Operation;
        /// Begins to remove a machine and its disks. A running one needs `force`.
        "vm.remove" vm_remove(VmRemove) -> Operation;
        /// Begins to stop a machine that runs, and to start it.
        "vm.restart" vm_restart(VmRestart) -> Operation;
        /// Changes settings of a machine; the answer says which apply now and which at its next start.
        "vm.set" vm_set(VmSet) -> VmSetReply;
        /// Begins to renew a machine's system disk, from its own or from another image. Its work disk stays.
        "vm.reset" vm_reset(VmReset) -> Operation;
        /// Gives a machine another name.
        "vm.rename" vm_rename(VmRename) -> Vm;
        /// Everything a start would check, with its outcome. Touches nothing.
        "vm.preflight" vm_preflight(VmRef) -> VmPreflight;
        /// Figures of machines, from the host and from their agents.
        "vm.stats" vm_stats(VmStatsOf) -> Vec<VmStats>;
        /// How a machine fares: process, agent, disks, network.
        "vm.health" vm_health(VmRef) -> VmHealth;
        /// Waits until the guest's init has started everything, or the time is over.
        "vm.wait" vm_wait(VmWait) -> VmWaited;
        /// What listens in a guest, and where it is reached.
        "vm.ports" vm_ports(VmRef) -> VmPorts;
        /// Makes ports of a guest reachable at the host, now and whenever the machine runs; those, with their ports.
        "vm.publish" vm_publish(VmPublish) -> Vec<Publication>;
        /// Takes that back and ends the connections; what was taken back.
        "vm.unpublish" vm_unpublish(VmUnpublish) -> Vec<Publication>;
        /// Asks the guest's agent for an answer and measures the round trip.
        "vm.ping" vm_ping(VmRef) -> VmPing;
        /// Starts a command in the guest that goes on whoever comes and goes.
        "session.start" session_start(SessionStart) -> Session;
        /// Sessions of a machine, or of all, in the order in which they were started.
        "session.list" session_list(SessionsOf) -> Vec<Session>;
        /// One session.
        "session.show" session_show(SessionRef) -> Session;
        /// Waits for a session's end; how it ended.
        "session.wait" session_wait(SessionRef) -> Session;
        /// Sends a signal to a session's process group.
        "session.signal" session_signal(SessionSignal) -> Empty;
        /// Forgets a session that has ended, and what it wrote.
        "session.remove" session_remove(SessionRemove) -> Session;
        /// The key with which an ssh client logs in to machines, and the machines' host keys.
        "ssh.identity" ssh_identity(SshIdentityOf) -> SshIdentity;
        /// Makes the client's key anew. The former is refused from the next connection on.
        "ssh.rotate" ssh_rotate(Empty) -> SshIdentity;
        /// The network of machines: bridge, addresses, taps, rules.
        "net.status" net_status(Empty) -> NetStatus;
        /// Operations, newest first.
        "op.list" op_list(Empty) -> Vec<Operation>;
        /// One operation.
        "op.show" op_show(OperationRef) -> Operation;
        /// Cancels an operation and waits until it has cleaned up. A finished one is left as it is.
        "op.cancel" op_cancel(OperationRef) -> Operation;
        /// This contract, as OpenRPC.
        "rpc.discover" rpc_discover(Empty) -> serde_json::Value;
    }
    subscriptions {
        /// The operation as it stands, then each change, until it has ended.
        "op.watch" op_watch(OperationRef) -> Operation;
    }
    streams {
        /// Runs a command in the guest. Frames as in the module `frame`.
        "guest.exec" guest_exec(ExecOpen);
        /// Sends a tar stream to be unpacked in the guest.
        "guest.upload" guest_upload(UploadOpen);
        /// Receives a file or tree of the guest as a tar stream.
        "guest.download" guest_download(DownloadOpen);
        /// One connection to the sshd of the guest's image, as bytes.
        "guest.ssh" guest_ssh(SshOpen);
        /// What a session wrote: frames of standard output and standard error.
        "session.logs" session_logs(SessionLogs);
        /// What a build says, as bytes.
        "image.build_log" image_build_log(BuildLog);
        /// The machine's serial console, as bytes.
        "vm.logs" vm_logs(LogsOpen);
    }
}
