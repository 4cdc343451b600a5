//! The requests made to Firecracker: those that start a machine, and those to a running one.
//!
//! Source: Firecracker 1.12, src/firecracker/swagger/firecracker.yaml. Each request has a connection of its own, so a
//! request that is dropped disturbs no other.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::config::Config;
use super::http::{HttpError, Response, exchange};
use crate::error::ControlError;
use crate::files::connect_when_listening;
use crate::vmm::RunState;

/// How long Firecracker has to answer; its API thread does so within a millisecond, except while it pauses.
const PATIENCE: Duration = Duration::from_secs(10);

/// The API socket of one machine.
#[derive(Debug, Clone)]
pub(super) struct Api {
    socket: PathBuf,
}

/// The answer to `GET /`: InstanceInfo.
#[derive(Debug, Deserialize)]
struct InstanceInfo {
    id: String,
    state: InstanceState,
}

#[derive(Debug, Deserialize)]
enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

/// The body of `PUT /actions`.
#[derive(Debug, Serialize)]
struct Action {
    action_type: ActionType,
}

#[derive(Debug, Serialize)]
enum ActionType {
    InstanceStart,
    FlushMetrics,
}

/// The body of `PATCH /drives/{drive_id}`.
#[derive(Debug, Serialize)]
struct DriveUpdate<'a> {
    drive_id: &'a str,
    path_on_host: &'a str,
}

/// The body of `PATCH /vm`.
#[derive(Debug, Serialize)]
struct Vm {
    state: VmState,
}

#[derive(Debug, Serialize)]
enum VmState {
    Paused,
    Resumed,
}

/// The body of every answer that reports a failure.
#[derive(Debug, Deserialize)]
struct Fault {
    fault_message: String,
}

impl Api {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Waits until the API listens, makes sure that it is the one of `token`, describes the machine and starts it.
    ///
    /// Without a limit of time: the caller bounds it, and watches the process.
    pub(super) async fn start(&self, token: &str, config: &Config<'_>) -> Result<(), ControlError> {
        let stream = connect_when_listening(&self.socket)
            .await
            .map_err(|source| ControlError::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let response = self.exchange(stream, "GET", "/", None).await?;
        let info = self.instance_info(&response)?;
        if info.id != token {
            return Err(self.protocol(format!("it is {:?}, not {token:?}", info.id)));
        }
        self.put("/machine-config", &config.machine_config).await?;
        self.put("/boot-source", &config.boot_source).await?;
        for drive in &config.drives {
            self.put(&format!("/drives/{}", drive.drive_id), drive).await?;
        }
        self.put("/vsock", &config.vsock).await?;
        if let Some(network) = &config.network {
            let path = format!("/network-interfaces/{}", network.iface_id);
            self.put(&path, network).await?;
        }
        self.put(
            "/actions",
            &Action {
                action_type: ActionType::InstanceStart,
            },
        )
        .await
    }

    async fn put(&self, path: &str, body: &impl Serialize) -> Result<(), ControlError> {
        let body = self.json(body)?;
        let stream = self.connect().await?;
        self.exchange(stream, "PUT", path, Some(&body)).await.map(drop)
    }

    fn json(&self, body: &impl Serialize) -> Result<String, ControlError> {
        serde_json::to_string(body).map_err(|error| self.protocol(error.to_string()))
    }

    async fn connect(&self) -> Result<UnixStream, ControlError> {
        UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ControlError::Connect {
                socket: self.socket.clone(),
                source,
            })
    }

    /// Asks for the machine's state.
    pub(super) async fn state(&self) -> Result<RunState, ControlError> {
        let response = self.request("GET", "/", None).await?;
        self.instance_info(&response).map(|info| run_state(&info))
    }

    /// Stops the guest's processors.
    pub(super) async fn pause(&self) -> Result<(), ControlError> {
        self.patch_vm(VmState::Paused).await
    }

    /// Lets the guest's processors run.
    pub(super) async fn resume(&self) -> Result<(), ControlError> {
        self.patch_vm(VmState::Resumed).await
    }

    /// Makes Firecracker look at a drive's file again, whose size the guest then learns.
    pub(super) async fn refresh_drive(&self, id: &str, path: &str) -> Result<(), ControlError> {
        let body = self.json(&DriveUpdate {
            drive_id: id,
            path_on_host: path,
        })?;
        self.request("PATCH", &format!("/drives/{id}"), Some(&body))
            .await
            .map(drop)
    }

    /// Has the metrics of now written to their file; they are there when this returns.
    pub(super) async fn flush_metrics(&self) -> Result<(), ControlError> {
        let body = self.json(&Action {
            action_type: ActionType::FlushMetrics,
        })?;
        self.request("PUT", "/actions", Some(&body)).await.map(drop)
    }

    async fn patch_vm(&self, state: VmState) -> Result<(), ControlError> {
        let body = self.json(&Vm { state })?;
        self.request("PATCH", "/vm", Some(&body)).await.map(drop)
    }

    fn instance_info(&self, response: &Response) -> Result<InstanceInfo, ControlError> {
        serde_json::from_slice(&response.body)
            .map_err(|error| self.protocol(format!("instance information: {error}")))
    }

    async fn request(&self, method: &str, path: &str, body: Option<&str>) -> Result<Response, ControlError> {
        let work = async {
            let stream = self.connect().await?;
            self.exchange(stream, method, path, body).await
        };
        timeout(PATIENCE, work).await.unwrap_or_else(|_| {
            Err(ControlError::Silent {
                socket: self.socket.clone(),
                request: format!("{method} {path}"),
                within: PATIENCE,
            })
        })
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> Result<Response, ControlError> {
        let response = exchange(stream, method, path, body)
            .await
            .map_err(|error| match error {
                HttpError::Io(source) => ControlError::Broken {
                    socket: self.socket.clone(),
                    source,
                },
                HttpError::Protocol(detail) => self.protocol(detail),
            })?;
        match response.status {
            200..=299 => Ok(response),
            status => {
                let message = serde_json::from_slice(&response.body).map_or_else(
                    |_| format!("status {status}"),
                    |Fault { fault_message }| fault_message,
                );
                Err(ControlError::Refused {
                    request: format!("{method} {path}"),
                    message,
                })
            }
        }
    }

    fn protocol(&self, detail: String) -> ControlError {
        ControlError::Protocol {
            socket: self.socket.clone(),
            detail,
        }
    }
}

fn run_state(info: &InstanceInfo) -> RunState {
    match info.state {
        InstanceState::Running => RunState::Running,
        InstanceState::Paused => RunState::Paused,
        InstanceState::NotStarted => RunState::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    use super::*;
    use crate::check::tests::spec;

    /// Answers one connection after the other with `status` and `body`, or, to what is not a GET, with 204 and none.
    /// Passes the first lines of the requests on.
    fn serve(dir: &Path, status: u16, body: &str) -> (Api, mpsc::UnboundedReceiver<String>) {
        let socket = dir.join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let response = format!(
            "HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (seen, requests) = mpsc::unbounded_channel();
        drop(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                let accepted = status == 200 && !line.starts_with("GET");
                let response = if accepted {
                    "HTTP/1.1 204 \r\n\r\n"
                } else {
                    &response
                };
                stream.write_all(response.as_bytes()).await.unwrap();
                seen.send(line.trim_end().to_owned()).ok();
                // To its end, or unread bytes would reset the connection.
                stream.read_to_end(&mut Vec::new()).await.ok();
            }
        }));
        (Api::new(socket), requests)
    }

    fn information(state: &str) -> String {
        format!(
            "{{\"id\":\"bgrabc0123456\",\"state\":\"{state}\",\"vmm_version\":\"1.12.1\",\"app_name\":\"F\"}}"
        )
    }

    #[tokio::test]
    async fn states() {
        for (state, expected) in [
            ("Running", RunState::Running),
            ("Paused", RunState::Paused),
            ("Not started", RunState::Other),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (api, _requests) = serve(dir.path(), 200, &information(state));
            assert_eq!(api.state().await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn a_start_tells_everything_first() {
        let dir = tempfile::tempdir().unwrap();
        let (api, mut requests) = serve(dir.path(), 200, &information("Not started"));
        let spec = spec(Path::new("/d"));
        api.start(&spec.token, &Config::of(&spec)).await.unwrap();
        let mut lines = Vec::new();
        while let Ok(line) = requests.try_recv() {
            lines.push(line.trim_end_matches(" HTTP/1.1").to_owned());
        }
        let expected = [
            "GET /",
            "PUT /machine-config",
            "PUT /boot-source",
            "PUT /drives/base",
            "PUT /drives/overlay",
            "PUT /vsock",
            "PUT /actions",
        ];
        assert_eq!(lines, expected);
        let error = api.start("bgrother", &Config::of(&spec)).await.unwrap_err();
        assert!(
            matches!(error, ControlError::Protocol { .. }),
            "another machine: {error}"
        );
    }

    #[tokio::test]
    async fn requests_to_a_running_machine() {
        let dir = tempfile::tempdir().unwrap();
        let (api, mut requests) = serve(dir.path(), 200, &information("Running"));
        api.refresh_drive("work", "/d/work.img").await.unwrap();
        api.flush_metrics().await.unwrap();
        let mut next = || requests.try_recv().unwrap();
        assert_eq!(next(), "PATCH /drives/work HTTP/1.1");
        assert_eq!(next(), "PUT /actions HTTP/1.1");
    }

    #[tokio::test]
    async fn faults_and_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let (api, _requests) = serve(dir.path(), 400, "{\"fault_message\":\"not now\"}");
        assert_eq!(
            api.pause().await.unwrap_err().to_string(),
            "run `PATCH /vm`: the VMM says: not now"
        );
        let dir = tempfile::tempdir().unwrap();
        let (api, _requests) = serve(dir.path(), 500, "<html>");
        assert_eq!(
            api.resume().await.unwrap_err().to_string(),
            "run `PATCH /vm`: the VMM says: status 500"
        );
        let dir = tempfile::tempdir().unwrap();
        let (api, _requests) = serve(dir.path(), 200, "{\"id\":\"x\",\"state\":\"Dancing\"}");
        assert!(matches!(api.state().await, Err(ControlError::Protocol { .. })));
        let api = Api::new(dir.path().join("absent"));
        assert!(matches!(api.state().await, Err(ControlError::Connect { .. })));
    }
}
