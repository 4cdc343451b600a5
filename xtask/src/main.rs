//! Developer chores: `cargo xtask CHORE`. The Makefile is the way in for people; this is where its logic is.
//!
//! Few dependencies and nothing of the product's: a chore runs before the product has been built.

mod demo;
mod firewalls;
mod fuzz;
mod host;
mod layout;
mod leftovers;
#[cfg(feature = "proto")]
mod proto;
mod sh;
mod stage;
mod test;
mod testbed;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask CHORE

  demo         from a built stage to a command that ran in a microVM
  clean-demo   undo that
  fuzz [TARGET…] [--seconds N]
               coverage-guided fuzzing of what reads hostile bytes, 15 s each where nothing is said
  proto        generate the guest protocol's code anew; --check only compares (needs --features proto)
  stage        put the release together under target/stage
  testbed      fetch and unpack what only the tests need, under target/testbed
  test [ARG…]  run every test against the stage; arguments go to the test runner
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let chore = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let result = match chore.as_deref() {
        Some("demo") => demo::demo().map(|()| ExitCode::SUCCESS),
        Some("clean-demo") => demo::clean().map(|()| ExitCode::SUCCESS),
        Some("fuzz") => fuzz::fuzz(&rest).map(|clean| ExitCode::from(u8::from(!clean))),
        #[cfg(feature = "proto")]
        Some("proto") => proto::run(rest.iter().any(|a| a == "--check"))
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        Some("stage") => stage::stage().map(|()| ExitCode::SUCCESS),
        Some("testbed") => testbed::prepare().map(|bed| {
            for missing in &bed.missing {
                println!("testbed: without {missing}");
            }
            ExitCode::SUCCESS
        }),
        Some("test") => test::test(&rest),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
