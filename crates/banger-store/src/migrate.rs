//! Forward-only migrations. A migration that has been released is frozen: change the schema by adding the next one.

use std::path::Path;

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

use crate::OpenError;

const STEPS: &[M<'static>] = &[
    M::up(include_str!("migrations/001_first_light.sql")),
    M::up(include_str!("migrations/002_lifecycle.sql")),
    M::up(include_str!("migrations/003_publications.sql")),
    M::up(include_str!("migrations/004_network.sql")),
    M::up(include_str!("migrations/005_images.sql")),
    M::up(include_str!("migrations/006_sessions.sql")),
    M::up(include_str!("migrations/007_registered.sql")),
];

/// Brings the schema up to date. An existing file is copied to `banger.db.schema-N` first, so that an upgrade can be
/// taken back; the newest copy of each schema is kept.
pub(crate) fn up(path: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    up_to(STEPS, path, connection)
}

fn up_to(steps: &[M<'_>], path: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    let open = |source| OpenError::Open {
        path: path.to_owned(),
        source,
    };
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(open)?;
    let known = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    if found == known {
        return Ok(());
    }
    if found > 0 {
        let mut copy = path.as_os_str().to_owned();
        copy.push(format!(".schema-{found}"));
        connection
            .backup("main", &copy, None)
            .map_err(|source| OpenError::Backup {
                path: copy.into(),
                source,
            })?;
    }
    Migrations::from_slice(steps)
        .to_latest(connection)
        .map_err(|source| OpenError::Migrate {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(path: &Path) -> i64 {
        Connection::open(path)
            .unwrap()
            .query_row("PRAGMA user_version", [], |r| r.get(0))
            .unwrap()
    }

    #[test]
    fn migrations_are_well_formed() {
        Migrations::from_slice(STEPS).validate().unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        assert!(matches!(
            crate::Store::open(&path),
            Err(OpenError::Newer { found: 99, .. })
        ));
        assert_eq!(version(&path), 99);
    }

    #[test]
    fn an_older_schema_is_copied_before_it_is_migrated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let mut connection = Connection::open(&path).unwrap();
        let steps = [
            M::up("CREATE TABLE t (x); INSERT INTO t VALUES (1);"),
            M::up("DROP TABLE t;"),
        ];
        up_to(&steps[..1], &path, &mut connection).unwrap();
        up_to(&steps, &path, &mut connection).unwrap();
        assert_eq!(version(&path), 2);
        let copy = dir.path().join("banger.db.schema-1");
        assert_eq!(version(&copy), 1);
        let kept: i64 = Connection::open(&copy)
            .unwrap()
            .query_row("SELECT x FROM t", [], |r| r.get(0))
            .unwrap();
        assert_eq!(kept, 1);
    }

    #[test]
    fn a_machine_of_first_light_keeps_its_meaning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let mut connection = Connection::open(&path).unwrap();
        up_to(&STEPS[..1], &path, &mut connection).unwrap();
        connection
            .execute_batch(
                "INSERT INTO kernels VALUES ('k', '6.1', 'elf', '', 1, 1, 1, '', '2026-01-01T00:00:00Z');
                 INSERT INTO images VALUES ('i', 'debian', 'k', '', 1, 1, '', '2026-01-01T00:00:00Z');
                 INSERT INTO vms VALUES ('v', 'dev', 'i', 'k', 2, 512, 4096, NULL, '{}', 0, '\"stopped\"', '2026-01-01T00:00:00Z');",
            )
            .unwrap();
        up(&path, &mut connection).unwrap();
        let tx = connection.transaction().unwrap();
        let (vms, unreadable) = crate::vms::list(&tx).unwrap();
        assert!(unreadable.is_empty(), "{unreadable:?}");
        assert_eq!(vms.len(), 1);
        let vm = &vms[0];
        assert_eq!(
            (vm.system_disk.as_str(), vm.generation, vm.work_disk),
            ("overlay", 0, 0)
        );
        assert_eq!((vm.nat, vm.autostart, vm.restart.as_str()), (true, false, "no"));
        assert_eq!((vm.expires, vm.allow.as_str()), (None, ""));
        assert_eq!((vm.image.as_str(), vm.image_name.as_str()), ("i", "debian"));
        let images = crate::images::list(&tx).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!((images[0].id.as_str(), images[0].name()), ("i", "debian"));
        assert_eq!((&images[0].digest, &images[0].config), (&None, &None));
        assert_eq!(images[0].registered, None);
        assert_eq!(crate::images::used_by(&tx, "i").unwrap(), ["dev"]);
        assert_eq!(crate::leases::find(&tx, &vm.id).unwrap(), None);
        assert_eq!(crate::publications::list(&tx).unwrap().0, []);
        assert_eq!(crate::sessions::list(&tx).unwrap(), []);
    }

    #[test]
    fn a_failing_migration_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let mut connection = Connection::open(&path).unwrap();
        let steps = [
            M::up("CREATE TABLE t (x);"),
            M::up("CREATE TABLE u (x); nonsense;"),
        ];
        up_to(&steps[..1], &path, &mut connection).unwrap();
        assert!(matches!(
            up_to(&steps, &path, &mut connection),
            Err(OpenError::Migrate { .. })
        ));
        assert_eq!(version(&path), 1);
    }
}
