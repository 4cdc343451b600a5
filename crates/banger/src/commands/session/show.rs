//! `banger session show`: one session.

use banger_api::types::{Session, SessionRef};
use clap::Args;
use jiff::Timestamp;

use super::{Which, command, state};
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// Show a session
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger session show dev make
  banger session show dev make -o json
")]
pub(crate) struct Show {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    output: OutputArgs,
}

impl Show {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Which { vm, session } = self.which;
        let params = SessionRef { vm, session };
        let session = context.client().await?.session_show(params).await?;
        let now = Timestamp::now();
        self.output.print(
            &session,
            |session| vec![&session.name],
            |session| render(session, now),
        )
    }
}

fn render(session: &Session, now: Timestamp) -> String {
    let ago = |time| {
        format!(
            "{} ({} ago)",
            human::format_time(time),
            human::format_age(time, now)
        )
    };
    let mut rows = vec![
        ("name", session.name.clone()),
        ("id", session.id.clone()),
        ("machine", session.vm.clone()),
        ("state", state(session)),
    ];
    rows.extend(session.reason.iter().map(|reason| ("reason", reason.clone())));
    rows.push(("command", command(session)));
    rows.extend(session.user.iter().map(|user| ("user", user.clone())));
    rows.push(("started", ago(session.started)));
    rows.extend(session.ended.map(|ended| ("ended", ago(ended))));
    rows.push(("stops machine", human::yes_no(session.ends_machine).to_owned()));
    table::fields(rows)
}
