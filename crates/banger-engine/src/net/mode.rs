//! How machines are connected: decided once, when the daemon starts.
//!
//! Where the configuration leaves it to us (`auto`), a bridge is what there is wherever it can be. Elsewhere machines get the
//! VMM's own network, and the reason is shown: no privileges, a kernel that cannot filter what a bridge passes, a bridge of
//! that name that is another daemon's. What comes and goes while the daemon runs (a VPN with the same addresses) is none: it
//! is an obstacle, told at each start. Nor does a daemon whose machines have addresses give those up for somebody else's
//! bridge: that, too, is an obstacle.

use hostkit::exec::ExecError;
use hostkit::nft::NftError;

use super::bridge::Obstacle;
use super::filter::{self, State};
use super::hands::Hands;
use super::prerequisites;
use super::scene::Scene;
use crate::error::{Error, chain};
use crate::ledger::{Ledger, Object, Owner};
use crate::rows::Rows;
use crate::settings::{NetworkMode, NetworkSettings};

/// How machines are connected, and why so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A tap each, on the bridge.
    Bridge,
    /// The VMM's own network: why.
    User(String),
}

impl Mode {
    /// Decides. Changes nothing.
    pub(super) async fn decide(
        settings: &NetworkSettings,
        hands: &Hands,
        ledger: &Ledger,
        rows: &Rows,
    ) -> Result<Self, Error> {
        match settings.mode {
            NetworkMode::User => return Ok(Self::User("the configuration says so".to_owned())),
            NetworkMode::Bridge => return Ok(Self::Bridge),
            NetworkMode::Auto => {}
        }
        if let Some(missing) = prerequisites::missing(hands).into_iter().next() {
            return Ok(Self::User(missing.reason));
        }
        if let Some(reason) = cannot_filter(settings, hands).await {
            return Ok(Self::User(reason));
        }
        if let Some(obstacle) = anothers(settings, hands, ledger).await?
            && rows.read(banger_store::leases::list).await?.is_empty()
        {
            let fix = "for one of its own, set `bridge` and `subnet` under `[network]` in the configuration";
            return Ok(Self::User(format!("{obstacle}; {fix}")));
        }
        Ok(Self::Bridge)
    }
}

/// Why the kernel would not take our rules: it may lack a family of tables, or a module for what is in them. What may be
/// otherwise a moment later (no memory, no time) is no reason: it is told when they are applied.
async fn cannot_filter(settings: &NetworkSettings, hands: &Hands) -> Option<String> {
    let rules = filter::render(&State {
        bridge: settings.bridge.clone(),
        owner: hands.alias.to_string(),
        subnet: settings.subnet,
        ports: Vec::new(),
        on_link: Vec::new(),
    });
    let checked = match hands.nft() {
        Ok(nft) => nft.check(&rules).await,
        Err(e) => return Some(chain(&e)),
    };
    let e = checked.err().filter(is_lasting)?;
    Some(format!(
        "a bridge's rules cannot be had on this host: {}",
        chain(&e)
    ))
}

fn is_lasting(e: &NftError) -> bool {
    match e {
        NftError::Missing { .. } | NftError::Permission { .. } | NftError::Lacking { .. } => true,
        NftError::Failed { source, .. } => match source {
            // What the kernel says of a module that it does not have, and nft of what it is too old for.
            ExecError::Failed { stderr, .. } => stderr
                .iter()
                .any(|line| line.contains("No such file or directory") || line.contains("syntax error")),
            ExecError::NotFound { .. }
            | ExecError::Start { .. }
            | ExecError::Io { .. }
            | ExecError::TimedOut { .. }
            | ExecError::TooMuchOutput { .. } => false,
        },
        NftError::Watch { .. } | NftError::Name { .. } => false,
    }
}

/// The bridge of our name that is somebody else's. What the kernel does not say is found out when it is made.
async fn anothers(
    settings: &NetworkSettings,
    hands: &Hands,
    ledger: &Ledger,
) -> Result<Option<Obstacle>, Error> {
    let object = Object::Bridge {
        name: settings.bridge.clone(),
    };
    let entered = ledger.objects(&Owner::Host).await?.contains(&object);
    let Ok(scene) = Scene::look(&Hands::links()?).await else {
        return Ok(None);
    };
    Ok(scene.ours(settings, &hands.alias, entered).err())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use hostkit::link::Links;

    use super::*;
    use crate::net::Network;
    use crate::net::subnet::Subnet;

    #[test]
    fn auto_is_a_bridge_or_the_reason_why_not() {
        testkit::in_network_namespace_async(async || {
            let Some(program) = testkit::program("BANGER_TEST_NFT", "nft") else {
                return;
            };
            let directory = tempfile::tempdir().unwrap();
            drop(crate::host::tests::host(directory.path()).await);
            let store = banger_store::Store::open(&directory.path().join("banger.db")).unwrap();
            let rows = Rows::new(store.clone());
            // As on a kernel without a family.
            let lacking = directory.path().join("nft");
            let script = format!(
                "#!/bin/sh\ncase $1 in --check) echo 'Error: Could not process rule: Operation not supported' >&2; exit 1;; \
                     esac\nexec {} \"$@\"\n",
                program.display()
            );
            std::fs::write(&lacking, script).unwrap();
            std::fs::set_permissions(&lacking, std::fs::Permissions::from_mode(0o755)).unwrap();
            // As on a host that is short of memory for now.
            let short = directory.path().join("short");
            std::fs::create_dir(&short).unwrap();
            let script =
                "#!/bin/sh\necho 'Error: Could not process rule: Cannot allocate memory' >&2; exit 1\n";
            std::fs::write(short.join("nft"), script).unwrap();
            let executable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(short.join("nft"), executable).unwrap();
            let mode = async |mode, path: &std::path::Path| {
                let settings = NetworkSettings {
                    passt: crate::settings::PasstChoice::Off,
                    mode,
                    bridge: "bgr0".to_owned(),
                    subnet: Subnet::DEFAULT,
                    pool: 0,
                };
                let hands = Hands::new(&settings.bridge, "test", &[path.to_owned()]);
                let ledger = Ledger::new(store.clone(), hands.clone());
                let network = Network::open(settings, hands, ledger, rows.clone()).await;
                network.unwrap().mode().clone()
            };
            let path = program.parent().unwrap();
            assert_eq!(mode(NetworkMode::Auto, path).await, Mode::Bridge);
            let why = |mode| match mode {
                Mode::User(why) => why,
                Mode::Bridge => panic!("a bridge"),
            };
            let said = why(mode(NetworkMode::Auto, directory.path()).await);
            assert!(
                said.contains("kernel lacks") && said.contains("not supported"),
                "{said}"
            );
            assert_eq!(mode(NetworkMode::Bridge, directory.path()).await, Mode::Bridge);

            assert_eq!(mode(NetworkMode::Auto, &short).await, Mode::Bridge);

            let links = Links::connect().unwrap();
            let index = links.make_bridge("bgr0", "banger other").await.unwrap();
            let said = why(mode(NetworkMode::Auto, path).await);
            assert!(said.contains("bgr0") && said.contains("`subnet`"), "{said}");
            assert_eq!(mode(NetworkMode::Bridge, path).await, Mode::Bridge);
            // Ours, from before.
            links.set_alias(index, "banger test").await.unwrap();
            assert_eq!(mode(NetworkMode::Auto, path).await, Mode::Bridge);
            // Another's, and machines of ours have addresses.
            links.set_alias(index, "banger other").await.unwrap();
            let id = crate::vm::change::tests::row().id;
            let leased = rows.write(crate::crash::Write::LeaseTake, move |tx| {
                let subnet = Subnet::DEFAULT;
                banger_store::leases::take(tx, &id, subnet.first(), subnet.last())
            });
            leased.await.unwrap();
            assert_eq!(mode(NetworkMode::Auto, path).await, Mode::Bridge);
        });
    }
}
