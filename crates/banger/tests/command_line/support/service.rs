//! What the daemon of these tests knows and does: canned, but for commands, which are real processes.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use banger_api::contract::{Caller, Events, Service, StreamHandler};
use banger_api::frame::Frame;
use banger_api::types::*;
use banger_api::{ErrorKind, RpcError};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::process::exec;

/// What the service has seen and keeps.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) vms: Mutex<BTreeMap<String, Vm>>,
    pub(crate) operations: Mutex<BTreeMap<String, watch::Sender<Operation>>>,
    /// Methods called that change something, in order.
    pub(crate) calls: Mutex<Vec<String>>,
    /// The last upload.
    pub(crate) uploaded: Mutex<Vec<u8>>,
    /// What a download gives.
    pub(crate) download: Mutex<Vec<u8>>,
    /// Operations wait to be cancelled.
    pub(crate) slow: Mutex<bool>,
    /// How often figures were asked for.
    pub(crate) samples: Mutex<u64>,
    /// How often the key of ssh was made anew.
    pub(crate) keys: Mutex<u64>,
}

/// A machine that runs.
pub(super) fn vm(name: &str) -> Vm {
    let created = "2026-02-01T00:00:00Z".parse().unwrap();
    Vm {
        id: format!("{name:x<10}"),
        name: name.into(),
        state: VmState::Running,
        failure: None,
        last_lines: Vec::new(),
        image: "busybox".into(),
        image_id: "a1b2c3d4e5".into(),
        kernel: "debian".into(),
        vcpus: 1,
        memory: 128 << 20,
        disk: 1 << 30,
        disk_used: 0,
        vmm: None,
        labels: BTreeMap::new(),
        ephemeral: false,
        system_disk: banger_api::types::SystemDisk::Overlay,
        work_disk: 0,
        work_disk_used: 0,
        nat: true,
        autostart: false,
        restart: banger_api::types::RestartPolicy::No,
        expires: None,
        restarts: 0,
        restarts_at: None,
        allow: std::collections::BTreeSet::new(),
        address: None,
        mac: "02:00:00:00:00:01".into(),
        published: Vec::new(),
        pending: Vec::new(),
        created,
        running: None,
    }
}

/// The service of one daemon.
pub(super) struct Local(pub(super) Arc<World>);

impl Local {
    fn find(&self, name: &str) -> Result<Vm, RpcError> {
        let vms = self.0.vms.lock().unwrap();
        vms.values()
            .find(|vm| vm.name == name || vm.id == name)
            .cloned()
            .ok_or_else(|| {
                RpcError::new(ErrorKind::NotFound, format!("no machine is named {name}"))
                    .hint("did you mean dev?")
            })
    }

    fn called(&self, what: String) {
        self.0.calls.lock().unwrap().push(what);
    }

    /// Begins an operation; it ends at once, or when it is cancelled.
    fn begin(&self, kind: &str, subject: &str) -> Operation {
        let slow = *self.0.slow.lock().unwrap();
        let operation = Operation {
            id: format!("op{}", self.0.operations.lock().unwrap().len()),
            kind: kind.into(),
            subject: subject.into(),
            state: if slow {
                OperationState::Running
            } else {
                OperationState::Succeeded
            },
            generation: 1,
            stage: "booting".into(),
            message: None,
            done: None,
            total: None,
            notices: vec!["slow mode: no hardware virtualization".into()],
            cancel: None,
            error: None,
            began: jiff::Timestamp::now(),
            ended: None,
        };
        let (sender, _) = watch::channel(operation.clone());
        self.0
            .operations
            .lock()
            .unwrap()
            .insert(operation.id.clone(), sender);
        operation
    }

    fn operation(&self, id: &str) -> Result<watch::Receiver<Operation>, RpcError> {
        let operations = self.0.operations.lock().unwrap();
        let sender = operations
            .get(id)
            .ok_or_else(|| RpcError::new(ErrorKind::NotFound, "no such operation"))?;
        Ok(sender.subscribe())
    }
}

/// The image `greeter` has a program of its own, as those of OCI do.
fn image(name: String) -> Image {
    let config = ImageConfig {
        entrypoint: ["echo", "hello"].map(str::to_owned).to_vec(),
        cmd: vec!["world".to_owned()],
        ..ImageConfig::default()
    };
    Image {
        id: "a1b2c3d4e5".into(),
        config: (name == "greeter").then_some(config),
        name,
        kernel: "debian".into(),
        sha256: String::new(),
        size: 1 << 20,
        used: 1 << 20,
        source: "test".into(),
        used_by: Vec::new(),
        created: jiff::Timestamp::now(),
        ..Image::default()
    }
}

/// What can be removed: all but what is not there and what is in use.
fn removable(what: &str, name: &str) -> Result<(), RpcError> {
    match name {
        "nosuch" => Err(RpcError::new(ErrorKind::NotFound, format!("no {what} {name:?}"))),
        "used" => Err(RpcError::new(ErrorKind::InUse, "something uses it")),
        _ => Ok(()),
    }
}

/// Methods that no test of the command line needs.
fn absent<T>(method: &str) -> Result<T, RpcError> {
    Err(RpcError::new(
        ErrorKind::UnknownMethod,
        format!("the test's daemon has no {method}"),
    ))
}

impl Service for Local {
    async fn vm_restart(&self, _: Caller, params: VmRestart) -> Result<Operation, RpcError> {
        let vm = self.find(&params.vm)?;
        self.called(format!("vm.restart {} {:?}", vm.name, params.timeout_seconds));
        Ok(self.begin("vm.restart", &vm.name))
    }

    async fn vm_set(&self, _: Caller, params: VmSet) -> Result<VmSetReply, RpcError> {
        let vm = self.find(&params.vm)?;
        self.called(format!("vm.set {} memory={:?}", vm.name, params.memory));
        let memory = params.memory.filter(|memory| *memory != vm.memory);
        let changes = memory.map(|memory| VmChange {
            setting: "memory".into(),
            from: vm.memory.to_string(),
            to: memory.to_string(),
            applies: Applies::NextStart,
            reason: Some("fixed while it runs".into()),
        });
        Ok(VmSetReply {
            vm,
            changes: changes.into_iter().collect(),
            notices: Vec::new(),
        })
    }

    async fn vm_reset(&self, _: Caller, params: VmReset) -> Result<Operation, RpcError> {
        let mut vm = self.find(&params.vm)?;
        self.called(format!(
            "vm.reset {} image={:?} force={}",
            vm.name, params.image, params.force
        ));
        if !params.force {
            return Err(RpcError::new(
                ErrorKind::WrongState,
                format!("{} is running", vm.name),
            ));
        }
        if let Some(image) = params.image {
            vm.image_id = format!("{image:0>10}");
            vm.image = image;
        }
        let operation = self.begin("vm.reset", &vm.name);
        self.0.vms.lock().unwrap().insert(vm.name.clone(), vm);
        Ok(operation)
    }

    async fn vm_rename(&self, _: Caller, params: VmRename) -> Result<Vm, RpcError> {
        let mut vm = self.find(&params.vm)?;
        let mut vms = self.0.vms.lock().unwrap();
        vms.remove(&vm.name);
        vm.name = params.name;
        vms.insert(vm.name.clone(), vm.clone());
        Ok(vm)
    }

    async fn vm_preflight(&self, _: Caller, params: VmRef) -> Result<VmPreflight, RpcError> {
        let vm = self.find(&params.vm)?;
        let ready = vm.name != "sick";
        let check = Check {
            group: "disks".into(),
            name: "image".into(),
            state: if ready {
                CheckState::Ok
            } else {
                CheckState::Failure
            },
            reason: "as told".into(),
            fix: None,
        };
        Ok(VmPreflight {
            vm: vm.name,
            ready,
            checks: vec![check],
        })
    }

    async fn vm_stats(&self, _: Caller, params: VmStatsOf) -> Result<Vec<VmStats>, RpcError> {
        let samples = {
            let mut samples = self.0.samples.lock().unwrap();
            *samples += 1;
            *samples
        };
        let vms = match params.vms.as_slice() {
            [] => self.0.vms.lock().unwrap().values().cloned().collect(),
            names => names
                .iter()
                .map(|name| self.find(name))
                .collect::<Result<Vec<Vm>, _>>()?,
        };
        // Each sample is a second of half a processor later.
        let figures = |vm: Vm| VmStats {
            vm: vm.name,
            id: vm.id,
            state: vm.state,
            time: vm.created,
            host: Some(HostFigures {
                uptime_microseconds: samples * 1_000_000,
                cpu_microseconds: samples * 500_000,
                vcpus: vm.vcpus,
                memory: 64 << 20,
                memory_limit: vm.memory,
                disk_read: samples << 20,
                disk_written: 0,
                network_received: None,
                network_sent: None,
                disk_used: 5 << 20,
            }),
            guest: None,
            guest_problem: Some("the agent does not answer".into()),
        };
        Ok(vms.into_iter().map(figures).collect())
    }

    async fn vm_health(&self, _: Caller, params: VmRef) -> Result<VmHealth, RpcError> {
        let vm = self.find(&params.vm)?;
        let (health, state) = match vm.name.as_str() {
            "sick" => (HealthState::Unhealthy, CheckState::Failure),
            "asleep" => (HealthState::Stopped, CheckState::Ok),
            _ => (HealthState::Healthy, CheckState::Ok),
        };
        let check = Check {
            group: "process".into(),
            name: "process".into(),
            state,
            reason: "as told".into(),
            fix: None,
        };
        Ok(VmHealth {
            vm: vm.name,
            state: vm.state,
            health,
            checks: vec![check],
        })
    }

    async fn vm_wait(&self, _: Caller, params: VmWait) -> Result<VmWaited, RpcError> {
        let vm = self.find(&params.vm)?.name;
        let boot = match vm.as_str() {
            "sick" => BootState::Degraded,
            _ => BootState::Running,
        };
        Ok(VmWaited { vm, boot })
    }

    async fn gc_run(&self, _: Caller, params: GcRun) -> Result<GcReport, RpcError> {
        self.called(format!("gc.run dry_run={}", params.dry_run));
        let garbage = |what: &str, problem: Option<&str>| Garbage {
            kind: "directory".into(),
            what: what.into(),
            why: "no machine has this id".into(),
            size: 3 << 20,
            collected: (!params.dry_run).then_some(problem.is_none()),
            problem: problem.filter(|_| !params.dry_run).map(Into::into),
        };
        Ok(GcReport {
            garbage: vec![garbage("/a", None), garbage("/b", Some("it is in use"))],
        })
    }

    async fn daemon_status(&self, _: Caller, _: Empty) -> Result<DaemonStatus, RpcError> {
        absent("daemon.status")
    }
    async fn daemon_shutdown(&self, _: Caller, _: Empty) -> Result<Empty, RpcError> {
        absent("daemon.shutdown")
    }
    async fn doctor_run(&self, _: Caller, _: Empty) -> Result<DoctorReport, RpcError> {
        let check = Check {
            group: "vmm".into(),
            name: "qemu".into(),
            state: CheckState::Warning,
            reason: "old".into(),
            fix: Some("install a newer one".into()),
        };
        Ok(DoctorReport { checks: vec![check] })
    }
    async fn image_list(&self, _: Caller, _: Empty) -> Result<Vec<Image>, RpcError> {
        Ok(Vec::new())
    }
    async fn image_show(&self, _: Caller, params: ImageRef) -> Result<Image, RpcError> {
        if params.image == "nosuch" {
            return Err(RpcError::new(ErrorKind::NotFound, "no image \"nosuch\""));
        }
        Ok(image(params.image))
    }
    async fn image_remove(&self, _: Caller, params: ImageRef) -> Result<Image, RpcError> {
        removable("image", &params.image)?;
        Ok(image(params.image))
    }
    async fn image_find(&self, _: Caller, _: ImageFind) -> Result<Vec<Image>, RpcError> {
        absent("image.find")
    }
    async fn image_tag(&self, _: Caller, _: ImageTag) -> Result<Image, RpcError> {
        absent("image.tag")
    }
    async fn image_register(&self, _: Caller, params: ImageRegister) -> Result<Operation, RpcError> {
        self.called(format!("image.register {} {}", params.name, params.path));
        Ok(self.begin("image.register", &params.name))
    }
    async fn image_bootstrap(&self, _: Caller, _: ImageBootstrap) -> Result<Operation, RpcError> {
        absent("image.bootstrap")
    }
    async fn image_pull(&self, _: Caller, params: ImagePull) -> Result<Operation, RpcError> {
        self.called(format!("image.pull {}", params.reference));
        Ok(self.begin("image.pull", &params.reference))
    }
    async fn image_import(&self, _: Caller, _: ImageImport) -> Result<Operation, RpcError> {
        absent("image.import")
    }
    async fn image_build(&self, _: Caller, _: ImageBuild) -> Result<Operation, RpcError> {
        absent("image.build")
    }
    async fn image_build_prune(&self, _: Caller, _: Empty) -> Result<BuildCache, RpcError> {
        absent("image.build_prune")
    }
    async fn image_build_log(&self, _: Caller, _: BuildLog) -> Result<StreamHandler, RpcError> {
        absent("image.build_log")
    }
    async fn image_export(&self, _: Caller, _: ImageExport) -> Result<Operation, RpcError> {
        absent("image.export")
    }
    async fn image_promote(&self, _: Caller, _: ImageRef) -> Result<Operation, RpcError> {
        absent("image.promote")
    }
    async fn image_verify(&self, _: Caller, _: ImageVerify) -> Result<Operation, RpcError> {
        absent("image.verify")
    }
    async fn image_prune(&self, _: Caller, _: GcRun) -> Result<GcReport, RpcError> {
        absent("image.prune")
    }
    async fn kernel_list(&self, _: Caller, _: Empty) -> Result<Vec<Kernel>, RpcError> {
        Ok(Vec::new())
    }
    async fn kernel_add(&self, _: Caller, _: KernelAdd) -> Result<Operation, RpcError> {
        absent("kernel.add")
    }
    async fn image_seed_show(&self, _: Caller, _: ImageSeeds) -> Result<Vec<ImageSeed>, RpcError> {
        absent("image.seed_show")
    }

    async fn image_seed_refresh(&self, _: Caller, _: ImageSeeds) -> Result<Vec<ImageSeed>, RpcError> {
        absent("image.seed_refresh")
    }

    async fn kernel_default(&self, _: Caller, _: Empty) -> Result<DefaultKernel, RpcError> {
        absent("kernel.default")
    }

    async fn kernel_set_default(&self, _: Caller, _: KernelSetDefault) -> Result<DefaultKernel, RpcError> {
        absent("kernel.set_default")
    }

    async fn runtime_list(&self, _: Caller, _: Empty) -> Result<Vec<Runtime>, RpcError> {
        absent("runtime.list")
    }

    async fn runtime_install(&self, _: Caller, _: RuntimeInstall) -> Result<Operation, RpcError> {
        absent("runtime.install")
    }

    async fn runtime_remove(&self, _: Caller, _: RuntimeRef) -> Result<Runtime, RpcError> {
        absent("runtime.remove")
    }

    async fn kernel_remove(&self, _: Caller, params: KernelRef) -> Result<Kernel, RpcError> {
        removable("kernel", &params.kernel)?;
        Ok(Kernel {
            name: params.kernel,
            version: "6.1".into(),
            sha256: String::new(),
            size: 1 << 20,
            modules: 0,
            source: "test".into(),
            default: false,
            created: jiff::Timestamp::now(),
        })
    }
    async fn vm_create(&self, _: Caller, params: VmCreate) -> Result<Operation, RpcError> {
        let name = params.name.clone().unwrap_or_else(|| "made-up".into());
        self.called(format!(
            "vm.create {name} ephemeral={} start={}",
            params.ephemeral, params.start
        ));
        if !["busybox", "greeter"].contains(&params.image.as_str()) {
            return Err(RpcError::new(
                ErrorKind::NotFound,
                format!("no image is named {}", params.image),
            ));
        }
        self.0.vms.lock().unwrap().insert(name.clone(), vm(&name));
        Ok(self.begin("vm.create", &name))
    }
    async fn vm_list(&self, _: Caller, params: VmList) -> Result<Vec<Vm>, RpcError> {
        let matches = |vm: &Vm| {
            params.labels.iter().all(|(key, value)| {
                vm.labels
                    .get(key)
                    .is_some_and(|has| value.is_empty() || has == value)
            })
        };
        let vms = self.0.vms.lock().unwrap();
        Ok(vms.values().filter(|vm| matches(vm)).cloned().collect())
    }
    async fn vm_show(&self, _: Caller, params: VmRef) -> Result<Vm, RpcError> {
        self.find(&params.vm)
    }
    async fn vm_start(&self, _: Caller, params: VmStart) -> Result<Operation, RpcError> {
        let vm = self.find(&params.vm)?;
        Ok(self.begin("vm.start", &vm.name))
    }
    async fn vm_stop(&self, _: Caller, params: VmStop) -> Result<Operation, RpcError> {
        let vm = self.find(&params.vm)?;
        self.called(format!("vm.stop {} {:?}", vm.name, params.timeout_seconds));
        Ok(self.begin("vm.stop", &vm.name))
    }
    async fn vm_kill(&self, _: Caller, params: VmRef) -> Result<Operation, RpcError> {
        let vm = self.find(&params.vm)?;
        self.called(format!("vm.kill {}", vm.name));
        Ok(self.begin("vm.kill", &vm.name))
    }
    async fn vm_remove(&self, _: Caller, params: VmRemove) -> Result<Operation, RpcError> {
        let vm = self.find(&params.vm)?;
        self.called(format!("vm.remove {} force={}", params.vm, params.force));
        self.0.vms.lock().unwrap().remove(&vm.name);
        Ok(self.begin("vm.remove", &vm.name))
    }
    async fn vm_ping(&self, _: Caller, params: VmRef) -> Result<VmPing, RpcError> {
        Ok(VmPing {
            vm: self.find(&params.vm)?.name,
            latency_microseconds: 1_500,
            agent_version: "0.1.0".into(),
            guest_uptime_seconds: 5,
        })
    }
    async fn vm_ports(&self, _: Caller, params: VmRef) -> Result<VmPorts, RpcError> {
        self.find(&params.vm)?;
        Err(RpcError::new(ErrorKind::NotFound, "no ports here"))
    }
    async fn vm_publish(&self, _: Caller, params: VmPublish) -> Result<Vec<Publication>, RpcError> {
        self.find(&params.vm)?;
        Err(RpcError::new(ErrorKind::NotFound, "no ports here"))
    }
    async fn vm_unpublish(&self, _: Caller, params: VmUnpublish) -> Result<Vec<Publication>, RpcError> {
        self.find(&params.vm)?;
        Err(RpcError::new(ErrorKind::NotFound, "no ports here"))
    }
    async fn session_start(&self, _: Caller, params: SessionStart) -> Result<Session, RpcError> {
        let vm = self.find(&params.vm)?;
        let name = params.name.unwrap_or_else(|| "session".to_owned());
        self.called(format!(
            "session.start {} {name} {} ends_machine={}",
            vm.name,
            params.command.join(" "),
            params.ends_machine
        ));
        if params.command[0] == "nosuch-command" {
            return Err(RpcError::new(
                ErrorKind::CommandNotFound,
                "nosuch-command: not found",
            ));
        }
        Ok(Session {
            id: "s1s2s3s4s5".into(),
            name,
            vm: vm.name,
            command: params.command,
            user: params.user,
            state: SessionState::Running,
            exit_code: None,
            signal: None,
            reason: None,
            started: jiff::Timestamp::now(),
            ended: None,
            ends_machine: params.ends_machine,
        })
    }
    async fn session_list(&self, _: Caller, _: SessionsOf) -> Result<Vec<Session>, RpcError> {
        Ok(Vec::new())
    }
    async fn session_show(&self, _: Caller, params: SessionRef) -> Result<Session, RpcError> {
        self.find(&params.vm)?;
        Err(RpcError::new(ErrorKind::NotFound, "no sessions here"))
    }
    async fn session_wait(&self, _: Caller, params: SessionRef) -> Result<Session, RpcError> {
        self.find(&params.vm)?;
        Err(RpcError::new(ErrorKind::NotFound, "no sessions here"))
    }
    async fn session_signal(&self, _: Caller, params: SessionSignal) -> Result<Empty, RpcError> {
        self.find(&params.vm)?;
        Err(RpcError::new(ErrorKind::NotFound, "no sessions here"))
    }
    async fn session_remove(&self, _: Caller, params: SessionRemove) -> Result<Session, RpcError> {
        self.find(&params.vm)?;
        Err(RpcError::new(ErrorKind::NotFound, "no sessions here"))
    }
    async fn session_logs(&self, _: Caller, params: SessionLogs) -> Result<StreamHandler, RpcError> {
        self.find(&params.vm)?;
        Err(RpcError::new(ErrorKind::NotFound, "no sessions here"))
    }
    async fn net_status(&self, _: Caller, _: Empty) -> Result<NetStatus, RpcError> {
        Err(RpcError::new(ErrorKind::NotFound, "no network here"))
    }

    async fn op_list(&self, _: Caller, _: Empty) -> Result<Vec<Operation>, RpcError> {
        Ok(Vec::new())
    }
    async fn op_show(&self, _: Caller, params: OperationRef) -> Result<Operation, RpcError> {
        Ok(self.operation(&params.operation)?.borrow().clone())
    }
    async fn op_cancel(&self, _: Caller, params: OperationRef) -> Result<Operation, RpcError> {
        self.called(format!("op.cancel {}", params.operation));
        let operations = self.0.operations.lock().unwrap();
        let sender = operations
            .get(&params.operation)
            .ok_or_else(|| RpcError::new(ErrorKind::NotFound, "no such operation"))?;
        sender.send_modify(|operation| {
            if !operation.state.ended() {
                operation.state = OperationState::Cancelled;
                operation.generation += 1;
            }
        });
        Ok(sender.borrow().clone())
    }
    async fn rpc_discover(&self, _: Caller, _: Empty) -> Result<serde_json::Value, RpcError> {
        absent("rpc.discover")
    }

    async fn op_watch(&self, _: Caller, params: OperationRef) -> Result<Events<Operation>, RpcError> {
        let mut operation = self.operation(&params.operation)?;
        let (events, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let latest = operation.borrow_and_update().clone();
                let ended = latest.state.ended();
                if events.send(Ok(latest)).await.is_err() || ended || operation.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn guest_exec(&self, _: Caller, params: ExecOpen) -> Result<StreamHandler, RpcError> {
        self.find(&params.vm)?;
        let mut command = tokio::process::Command::new(&params.command[0]);
        command
            .args(&params.command[1..])
            .envs(&params.env)
            .process_group(0)
            .kill_on_drop(true);
        command.stdin(if params.stdin {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| {
            RpcError::new(
                ErrorKind::CommandNotFound,
                format!("no command {}: {error}", params.command[0]),
            )
        })?;
        Ok(Box::new(move |stream| Box::pin(exec(stream, child))))
    }

    async fn ssh_identity(&self, _: Caller, params: SshIdentityOf) -> Result<SshIdentity, RpcError> {
        if let Some(vm) = &params.vm {
            self.find(vm)?;
        }
        let keys = *self.0.keys.lock().unwrap();
        let hosts = self.0.vms.lock().unwrap();
        Ok(SshIdentity {
            private_key: format!("private {keys}\n"),
            public_key: format!("ssh-ed25519 AAAA{keys}"),
            hosts: hosts
                .values()
                .map(|vm| SshHost {
                    vm: vm.name.clone(),
                    host_key: format!("ssh-ed25519 BBBB{}", vm.id),
                })
                .collect(),
        })
    }

    async fn ssh_rotate(&self, caller: Caller, _: Empty) -> Result<SshIdentity, RpcError> {
        *self.0.keys.lock().unwrap() += 1;
        self.ssh_identity(caller, SshIdentityOf::default()).await
    }

    /// Gives back what comes, and then its last word.
    async fn guest_ssh(&self, _: Caller, params: SshOpen) -> Result<StreamHandler, RpcError> {
        let vm = self.find(&params.vm)?;
        if vm.state != VmState::Running {
            let error = RpcError::new(
                ErrorKind::WrongState,
                format!("machine {:?} is not running", vm.name),
            );
            return Err(error.hint(format!("start it: banger vm start {}", vm.name)));
        }
        Ok(Box::new(|mut stream| {
            Box::pin(async move {
                while let Ok(Some(Frame::Data(bytes))) = stream.next().await {
                    if stream.send(Frame::Data(bytes)).await.is_err() {
                        return;
                    }
                }
                let word = Bytes::from_static(b"bye");
                if stream.send(Frame::Data(word)).await.is_ok() {
                    stream.send(Frame::End).await.ok();
                }
            })
        }))
    }

    async fn guest_upload(&self, _: Caller, params: UploadOpen) -> Result<StreamHandler, RpcError> {
        self.find(&params.vm)?;
        self.called(format!(
            "guest.upload {} contents_only={}",
            params.path, params.contents_only
        ));
        let world = self.0.clone();
        Ok(Box::new(move |mut stream| {
            Box::pin(async move {
                let mut bytes = Vec::new();
                loop {
                    match stream.next().await {
                        Ok(Some(Frame::Data(chunk))) => bytes.extend_from_slice(&chunk),
                        Ok(Some(Frame::DataEof)) => break,
                        _ => return,
                    }
                }
                let end = match params.path.as_str() {
                    "/full" => Frame::Error(RpcError::new(
                        ErrorKind::OutOfResources,
                        "the guest's disk is full",
                    )),
                    _ => Frame::End,
                };
                *world.uploaded.lock().unwrap() = bytes;
                stream.send(end).await.ok();
            })
        }))
    }

    async fn guest_download(&self, _: Caller, params: DownloadOpen) -> Result<StreamHandler, RpcError> {
        self.find(&params.vm)?;
        let bytes = Bytes::from(self.0.download.lock().unwrap().clone());
        Ok(Box::new(move |mut stream| {
            Box::pin(async move {
                if stream.send(Frame::Data(bytes)).await.is_ok() {
                    stream.send(Frame::End).await.ok();
                }
            })
        }))
    }

    async fn vm_logs(&self, _: Caller, params: LogsOpen) -> Result<StreamHandler, RpcError> {
        let vm = self.find(&params.vm)?;
        Ok(Box::new(move |mut stream| {
            Box::pin(async move {
                if vm.name != "mute" {
                    let line = Bytes::from_static(b"console\n");
                    stream.send(Frame::Data(line)).await.ok();
                }
                stream.send(Frame::End).await.ok();
            })
        }))
    }
}
