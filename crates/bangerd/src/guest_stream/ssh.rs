//! Frames of `guest.ssh`: bytes both ways, each direction with an end of its own.

use banger_agent_api::{InputClosed, SshInput, SshOutput};
use banger_api::frame::{Frame, FrameReader, FrameStream, FrameWriter};

use super::{Ended, Session, data, finish};

impl Session {
    /// Serves `guest.ssh`.
    pub(crate) async fn ssh(self, stream: FrameStream, input: SshInput, mut output: SshOutput) {
        let (mut reader, mut writer) = stream.split();
        let ended = tokio::select! {
            // What is dropped when another arm is first: a frame half-sent is finished before the last one; bytes not
            // passed on are of no use to an sshd that has closed the connection.
            ended = self.pass_output(&mut output, &mut writer) => ended,
            ended = pass_input(&mut reader, &input) => ended,
            ended = self.stopped() => ended,
        };
        // Closes the connection, if it is still there.
        drop((input, output));
        finish(&mut writer, ended).await;
    }

    async fn pass_output(&self, output: &mut SshOutput, writer: &mut FrameWriter) -> Ended {
        loop {
            match output.next().await {
                Ok(Some(bytes)) => {
                    if writer.send(Frame::Data(bytes)).await.is_err() {
                        return Ended::Gone;
                    }
                }
                Ok(None) => return Ended::Final(Frame::End),
                Err(error) => return self.agent_failed(&error),
            }
        }
    }
}

/// Passes a client's bytes to sshd, until the client goes. An sshd that takes no more is no reason to end: why, its
/// output says.
async fn pass_input(reader: &mut FrameReader, input: &SshInput) -> Ended {
    loop {
        let bytes = match data(reader, "guest.ssh").await {
            Ok(bytes) => bytes,
            Err(ended) => return ended,
        };
        let passing = async {
            match bytes {
                Some(bytes) => input.send(bytes).await,
                None => input.finish().await,
            }
        };
        tokio::select! {
            passed = passing => if let Err(InputClosed) = passed {},
            // While sshd does not read, neither do we, and must see the client go all the same.
            () = reader.closed() => return Ended::Gone,
        }
    }
}
