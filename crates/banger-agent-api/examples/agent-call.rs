//! The raw agent call: what a daemon does with a guest, and nothing else.
//!
//! For trying a guest out by hand, and for benchmarks as the thing which everything above is compared with.
//!
//! ```text
//! agent-call SOCKET hello | ping | stats | reboot | reset
//! agent-call SOCKET wait-booted SECONDS               agent-call SOCKET grow system|work BYTES
//! agent-call SOCKET exec [-i] [-u USER] [-w DIR] [-n TIMES] -- CMD…
//! agent-call SOCKET put DEST < TAR            agent-call SOCKET get PATH > TAR
//! agent-call SOCKET wait-hello [CMD…]         listens on SOCKET_1025, waits for one hello line, then runs CMD
//! ```
//!
//! `SOCKET` is a hybrid-vsock Unix socket, or `plain:PATH` for an agent that serves on a Unix socket.
//! Times go to stderr.

use banger_agent_api::proto::{DownloadRequest, ExecStart, UploadStart};
use banger_agent_api::{AgentClient, DiskRole, ExecEvent, HELLO_PORT, read_hello_line};
use bytes::Bytes;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Guests without KVM are slow.
const DEADLINE: Duration = Duration::from_secs(60);

type Outcome = Result<ExitCode, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(command)) = (arguments.next(), arguments.next()) else {
        eprintln!(
            "usage: agent-call SOCKET hello|ping|stats|wait-booted|grow|exec|put|get|reboot|reset|wait-hello …"
        );
        return ExitCode::from(2);
    };
    match run(&socket, &command, arguments.collect()).await {
        Ok(code) => code,
        Err(error) => {
            eprint!("agent-call: failed to {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::from(125)
        }
    }
}

async fn run(socket: &str, command: &str, rest: Vec<String>) -> Outcome {
    let client = match socket.strip_prefix("plain:") {
        Some(path) => AgentClient::for_plain_socket(Path::new(path)),
        None => AgentClient::new(Path::new(socket)),
    };
    let began = Instant::now();
    match command {
        "hello" => println!("{:?}", client.hello(DEADLINE).await?),
        "ping" => println!("{:?}", client.ping(DEADLINE).await?),
        "stats" => println!("{:#?}", client.stats(DEADLINE).await?),
        "wait-booted" => {
            let seconds = rest.first().ok_or("read the seconds")?.parse()?;
            println!("{:?}", client.wait_booted(Duration::from_secs(seconds)).await?);
        }
        "grow" => {
            let [role, size] = rest.as_slice() else {
                return Err("read which disk, and its size".into());
            };
            let role = match role.as_str() {
                "system" => DiskRole::System,
                "work" => DiskRole::Work,
                other => return Err(format!("understand the disk {other:?}").into()),
            };
            println!("{:?}", client.grow_disk(role, size.parse()?, DEADLINE).await?);
        }
        "reboot" => client.shutdown(Some(DEADLINE), DEADLINE).await?,
        "reset" => client.shutdown(None, DEADLINE).await?,
        "exec" => return exec(&client, rest).await,
        "put" => put(&client, rest).await?,
        "get" => get(&client, rest).await?,
        "wait-hello" => {
            let listener = tokio::net::UnixListener::bind(format!("{socket}_{HELLO_PORT}"))?;
            let (stream, _) = listener.accept().await?;
            eprintln!("agent-call: connected after {:?}", began.elapsed());
            let line = read_hello_line(stream).await?;
            eprintln!("agent-call: {line:?} after {:?}", began.elapsed());
            let info = client.hello(DEADLINE).await?;
            eprintln!("agent-call: {info:?} after {:?}", began.elapsed());
            if !rest.is_empty() {
                let code = exec(&client, rest).await;
                eprintln!("agent-call: ran it after {:?}", began.elapsed());
                return code;
            }
        }
        other => return Err(format!("understand the command {other:?}").into()),
    }
    eprintln!("agent-call: {command} took {:?}", began.elapsed());
    Ok(ExitCode::SUCCESS)
}

async fn exec(client: &AgentClient, rest: Vec<String>) -> Outcome {
    let mut start = ExecStart::default();
    let mut times = 1u32;
    let mut rest = rest.into_iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "-i" => start.stdin = true,
            "-u" => start.user = rest.next().ok_or("read the value of -u")?,
            "-w" => start.workdir = rest.next().ok_or("read the value of -w")?,
            "-n" => times = rest.next().ok_or("read the value of -n")?.parse()?,
            "--" => break,
            _ => {
                start.argv.push(word);
                break;
            }
        }
    }
    start.argv.extend(rest);
    let mut code = 0;
    let mut round_trips = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        code = exec_once(client, start.clone()).await?;
        round_trips.push(began.elapsed());
    }
    round_trips.sort();
    if let (Some(fastest), Some(slowest)) = (round_trips.first(), round_trips.last()) {
        let median = round_trips[round_trips.len() / 2];
        eprintln!("agent-call: exec × {times}: min {fastest:?}, median {median:?}, max {slowest:?}");
    }
    Ok(ExitCode::from(code))
}

async fn exec_once(client: &AgentClient, start: ExecStart) -> Result<u8, Box<dyn Error>> {
    let interactive = start.stdin;
    let (input, mut output) = client.exec(start).await?;
    let feeder = tokio::spawn(async move {
        if !interactive {
            return;
        }
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match stdin.read(&mut buffer).await {
                Ok(length @ 1..)
                    if input
                        .stdin(Bytes::copy_from_slice(&buffer[..length]))
                        .await
                        .is_ok() => {}
                Ok(_) | Err(_) => break,
            }
        }
    });
    let mut code = 0;
    while let Some(event) = output.next().await? {
        match event {
            ExecEvent::Stdout(bytes) => {
                // Whoever talks to the command through a pipe waits for what it says, whole line or not.
                std::io::stdout().write_all(&bytes)?;
                std::io::stdout().flush()?;
            }
            ExecEvent::Stderr(bytes) => std::io::stderr().write_all(&bytes)?,
            ExecEvent::Exited(status) => code = status.shell_code(),
        }
    }
    feeder.abort();
    Ok(code)
}

async fn put(client: &AgentClient, rest: Vec<String>) -> Result<(), Box<dyn Error>> {
    let path = rest.into_iter().next().ok_or("read the destination")?;
    let mut upload = client.upload(UploadStart {
        path,
        user: String::new(),
        keep_owner: true,
        contents_only: false,
    });
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stdin.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        upload.send(Bytes::copy_from_slice(&buffer[..length])).await?;
    }
    eprintln!("agent-call: {:?}", upload.finish().await?);
    Ok(())
}

async fn get(client: &AgentClient, rest: Vec<String>) -> Result<(), Box<dyn Error>> {
    let path = rest.into_iter().next().ok_or("read the path")?;
    let mut download = client
        .download(DownloadRequest {
            path,
            user: String::new(),
            follow_link: false,
        })
        .await?;
    let mut stdout = tokio::io::stdout();
    while let Some(bytes) = download.next().await? {
        stdout.write_all(&bytes).await?;
    }
    stdout.flush().await?;
    Ok(())
}
