//! A real process at the end of a stream, in a guest's place.

use banger_api::frame::{ExitStatus, Frame, FrameStream};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Joins a process to a stream, as the daemon joins a guest's command.
pub(super) async fn exec(stream: FrameStream, mut child: tokio::process::Child) {
    let (mut reader, mut writer) = stream.split();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let mut stdin = child.stdin.take();
    let (frames, mut queue) = mpsc::channel::<Frame>(4);
    let out = tokio::spawn(pump(child.stdout.take().unwrap(), frames.clone(), Frame::Stdout));
    let err = tokio::spawn(pump(child.stderr.take().unwrap(), frames.clone(), Frame::Stderr));
    drop(frames);
    let (closed, mut gone) = mpsc::channel::<()>(1);
    let input = tokio::spawn(async move {
        let _closed = closed;
        while let Ok(Some(frame)) = reader.next().await {
            match (frame, &mut stdin) {
                (Frame::Stdin(bytes), Some(pipe)) => {
                    if pipe.write_all(&bytes).await.is_err() {
                        stdin = None;
                    }
                }
                (Frame::StdinEof, _) => stdin = None,
                (Frame::Signal(number), _) => {
                    let pid = rustix::process::Pid::from_raw(pid).unwrap();
                    let signal = rustix::process::Signal::from_named_raw(number).unwrap();
                    rustix::process::kill_process_group(pid, signal).ok();
                }
                (_, _) => {}
            }
        }
    });
    let output = async {
        while let Some(frame) = queue.recv().await {
            if writer.send(frame).await.is_err() {
                return None;
            }
        }
        child.wait().await.ok()
    };
    let status = tokio::select! {
        status = output => status,
        _ = gone.recv() => None,
    };
    if let Some(status) = status {
        use std::os::unix::process::ExitStatusExt as _;
        let status = match (status.code(), status.signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, signal) => ExitStatus::Signal(signal.unwrap()),
        };
        writer.send(Frame::Exit(status)).await.ok();
    }
    for task in [out, err, input] {
        task.abort();
    }
}

async fn pump(
    mut from: impl tokio::io::AsyncRead + Unpin,
    to: mpsc::Sender<Frame>,
    frame: fn(Bytes) -> Frame,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(64 << 10);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if to.send(frame(buffer.split().freeze())).await.is_err() {
                    return;
                }
            }
        }
    }
}
