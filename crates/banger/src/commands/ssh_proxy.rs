//! `banger ssh-proxy`: the ProxyCommand of ssh's configuration. Joins its standard streams to the sshd of a guest.

use banger_api::frame::{Frame, FrameReader, FrameWriter};
use banger_api::types::SshOpen;
use bytes::Bytes;
use clap::Args;
use tokio::sync::mpsc;

use crate::context::Context;
use crate::error::{CliError, Kind, chain};
use crate::session::{Input, Output};
use crate::ssh;

/// Join standard input and output to a machine's ssh server
///
/// What ssh runs for hosts called NAME.vm.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ssh -o 'ProxyCommand banger ssh-proxy %n' dev.vm
  banger ssh-proxy dev
")]
pub(crate) struct SshProxy {
    /// Machine, by name or id; `.vm` may follow
    #[arg(value_name = "VM")]
    vm: String,
}

impl SshProxy {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let vm = ssh::machine(&self.vm).to_owned();
        let (reader, writer) = client.guest_ssh(SshOpen { vm }).await?.split();
        let Input { chunks, stop: _stop } = Input::start()?;
        let sending = tokio::spawn(send(writer, chunks));
        let result = receive(reader).await;
        sending.abort();
        result
    }
}

/// Sends what ssh says. Keeps the sending half open at its end: closing it would close the connection.
async fn send(mut writer: FrameWriter, mut chunks: mpsc::Receiver<Bytes>) {
    loop {
        let (frame, last) = match chunks.recv().await {
            Some(bytes) => (Frame::Data(bytes), false),
            None => (Frame::DataEof, true),
        };
        // A failure means that the daemon has closed the stream; the receiver knows why.
        if writer.send(frame).await.is_err() {
            return;
        }
        if last {
            return std::future::pending().await;
        }
    }
}

async fn receive(mut reader: FrameReader) -> Result<u8, CliError> {
    let stdout = Output::start(rustix::stdio::stdout());
    let lost = |reason: &str| {
        CliError::new(Kind::Guest, format!("lost the connection to the guest: {reason}")).hint(
            "the machine may have stopped, or the daemon: see `banger vm show` and `banger daemon status`",
        )
    };
    let ended = loop {
        match reader.next().await {
            Ok(Some(Frame::Data(bytes))) => {
                if stdout.chunks.send(bytes).await.is_err() {
                    // ssh has gone.
                    break Ok(());
                }
            }
            Ok(Some(Frame::End)) => break Ok(()),
            Ok(Some(Frame::Error(error))) => break Err(CliError::from(error)),
            Ok(Some(
                Frame::Stdin(_)
                | Frame::StdinEof
                | Frame::Stdout(_)
                | Frame::Stderr(_)
                | Frame::Resize { .. }
                | Frame::Signal(_)
                | Frame::DataEof
                | Frame::Exit(_),
            )) => break Err(lost("the daemon sent a frame that does not belong here")),
            Ok(None) => break Err(lost("the daemon closed the stream")),
            Err(error) => break Err(lost(&format!("failed to {}", chain(&error)))),
        }
    };
    let written = stdout.finish().await;
    ended?;
    written?;
    Ok(0)
}
