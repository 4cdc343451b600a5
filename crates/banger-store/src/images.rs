//! The tables of images: what there is, what it is called, which blobs it refers to.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use crate::{StoreError, exists_or, from_json, signed, time, unsigned};

/// An image's row, with its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// For life.
    pub id: String,
    /// In order; each is this image's alone. None, where others have taken them.
    pub names: Vec<String>,
    /// Kernel's name.
    pub kernel: String,
    /// Of the root file system, hexadecimal.
    pub sha256: String,
    /// Of the root file system, bytes.
    pub size: u64,
    /// Bytes on the host.
    pub used: u64,
    /// Where it came from.
    pub source: String,
    /// When it was made.
    pub created: Timestamp,
    /// Of its manifest, `sha256:…`, where it is of OCI.
    pub digest: Option<String>,
    /// Of the index that led to the manifest.
    pub index_digest: Option<String>,
    /// What it says of its processes, as JSON, the engine's.
    pub config: Option<String>,
    /// The user's file that the root file system is; none where it is Banger's own.
    pub registered: Option<RegisteredFile>,
}

/// A file of the user's, and by what it is known to be the same still, besides the row's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredFile {
    /// Absolute, without symbolic links.
    pub path: String,
    /// Its inode's number.
    pub inode: u64,
    /// When its contents were changed last: nanoseconds since 1970-01-01T00:00:00Z.
    pub modified: i64,
}

impl ImageRow {
    /// What to call it: its first name, or its id where it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().unwrap_or(&self.id)
    }
}

/// A blob that an image refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// In the order of [`parse`].
const COLUMNS: &str = "id, kernel, sha256, size, used, source, created, digest, index_digest, config, \
     file_path, file_inode, file_modified, \
     (SELECT json_group_array(name) FROM (SELECT name FROM image_names WHERE image = images.id ORDER BY name))";

fn parse(row: &Row<'_>) -> rusqlite::Result<(ImageRow, String)> {
    let image = ImageRow {
        id: row.get(0)?,
        names: Vec::new(),
        kernel: row.get(1)?,
        sha256: row.get(2)?,
        size: unsigned(row, 3)?,
        used: unsigned(row, 4)?,
        source: row.get(5)?,
        created: time(row, 6)?,
        digest: row.get(7)?,
        index_digest: row.get(8)?,
        config: row.get(9)?,
        registered: match row.get(10)? {
            Some(path) => Some(RegisteredFile {
                path,
                inode: row.get::<_, i64>(11)?.cast_unsigned(),
                modified: row.get(12)?,
            }),
            None => None,
        },
    };
    Ok((image, row.get(13)?))
}

fn whole((mut image, names): (ImageRow, String)) -> Result<ImageRow, StoreError> {
    image.names = from_json("image_names", "name", &names)?;
    Ok(image)
}

/// All, by their first names, then those that have none.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<ImageRow>, StoreError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM images ORDER BY created, id"))?;
    let rows: Vec<_> = statement.query_map([], parse)?.collect::<Result<_, _>>()?;
    let mut rows = rows.into_iter().map(whole).collect::<Result<Vec<_>, _>>()?;
    rows.sort_by_key(|row| (row.names.is_empty(), row.names.first().cloned()));
    Ok(rows)
}

/// One, by exactly this name or else by id.
pub fn find(tx: &Transaction<'_>, reference: &str) -> Result<Option<ImageRow>, StoreError> {
    let by_name = format!(
        "SELECT {COLUMNS} FROM images WHERE id IN (SELECT image FROM image_names WHERE name = ?1) OR id = ?1 \
         ORDER BY id = ?1 LIMIT 1"
    );
    let mut statement = tx.prepare_cached(&by_name)?;
    statement
        .query_row([reference], parse)
        .optional()?
        .map(whole)
        .transpose()
}

/// One, by its id.
pub fn get(tx: &Transaction<'_>, id: &str) -> Result<Option<ImageRow>, StoreError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM images WHERE id = ?1"))?;
    let row = statement.query_row([id], parse).optional()?;
    row.map(whole).transpose()
}

/// Those of which a digest begins so: the manifest's, the index's, the root file system's. The prefix is `sha256:` and
/// hexadecimal digits.
pub fn by_digest(tx: &Transaction<'_>, prefix: &str) -> Result<Vec<ImageRow>, StoreError> {
    let all = list(tx)?;
    let begins = |digest: &Option<String>| digest.as_ref().is_some_and(|digest| digest.starts_with(prefix));
    let root = prefix.strip_prefix("sha256:").unwrap_or(prefix);
    let found = all
        .into_iter()
        .filter(|row| begins(&row.digest) || begins(&row.index_digest) || row.sha256.starts_with(root));
    Ok(found.collect())
}

/// Adds one with its names, which must be free, and the blobs that it refers to, in order.
pub fn insert(tx: &Transaction<'_>, row: &ImageRow, blobs: &[BlobRow]) -> Result<(), StoreError> {
    if crate::kernels::find(tx, &row.kernel)?.is_none() {
        return Err(StoreError::Missing {
            what: "kernel",
            name: row.kernel.clone(),
        });
    }
    let file = row.registered.as_ref();
    tx.prepare_cached("INSERT INTO images VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)")?
        .execute(params![
            row.id,
            row.kernel,
            row.sha256,
            signed(row.size),
            signed(row.used),
            row.source,
            row.created.to_string(),
            row.digest,
            row.index_digest,
            row.config,
            file.map(|file| &file.path),
            file.map(|file| file.inode.cast_signed()),
            file.map(|file| file.modified),
        ])
        .map_err(|e| exists_or(e, "image", row.name()))?;
    for name in &row.names {
        tx.prepare_cached("INSERT INTO image_names VALUES (?1, ?2)")?
            .execute([name, &row.id])
            .map_err(|e| exists_or(e, "image", name))?;
    }
    let mut statement = tx.prepare_cached("INSERT INTO image_blobs VALUES (?1, ?2, ?3, ?4)")?;
    for (position, blob) in (0_i64..).zip(blobs) {
        statement.execute(params![row.id, position, blob.digest, signed(blob.size)])?;
    }
    Ok(())
}

/// Gives an image a name, which another one loses if it has it; that one.
pub fn give_name(tx: &Transaction<'_>, name: &str, id: &str) -> Result<Option<ImageRow>, StoreError> {
    let sql =
        format!("SELECT {COLUMNS} FROM images WHERE id = (SELECT image FROM image_names WHERE name = ?1)");
    let former = tx.prepare_cached(&sql)?.query_row([name], parse).optional()?;
    tx.prepare_cached("INSERT INTO image_names VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET image = ?2")?
        .execute([name, id])?;
    let mut former = former.map(whole).transpose()?.filter(|former| former.id != id);
    if let Some(former) = &mut former {
        former.names.retain(|other| other != name);
    }
    Ok(former)
}

/// The root file system is the user's file as it is by now.
pub fn set_registered(tx: &Transaction<'_>, id: &str, file: &RegisteredFile) -> Result<(), StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE images SET file_path = ?2, file_inode = ?3, file_modified = ?4 WHERE id = ?1",
        )?
        .execute(params![id, file.path, file.inode.cast_signed(), file.modified])?;
    there(id, changed)
}

/// The root file system is Banger's own from now on, and takes so many bytes on the host.
pub fn set_managed(tx: &Transaction<'_>, id: &str, used: u64) -> Result<(), StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE images SET file_path = NULL, file_inode = NULL, file_modified = NULL, used = ?2 WHERE id = ?1",
        )?
        .execute(params![id, signed(used)])?;
    there(id, changed)
}

fn there(id: &str, changed: usize) -> Result<(), StoreError> {
    match changed {
        0 => Err(StoreError::Missing {
            what: "image",
            name: id.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Takes a name away; whether any image had it.
pub fn take_name(tx: &Transaction<'_>, name: &str) -> Result<bool, StoreError> {
    Ok(tx.execute("DELETE FROM image_names WHERE name = ?1", [name])? > 0)
}

/// Names of the machines that use an image.
pub fn used_by(tx: &Transaction<'_>, id: &str) -> Result<Vec<String>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT name FROM vms WHERE image = ?1 ORDER BY name")?;
    let names = statement
        .query_map([id], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(names)
}

/// Removes one that no machine uses, by its id, with all its names.
pub fn remove(tx: &Transaction<'_>, id: &str) -> Result<ImageRow, StoreError> {
    let row = get(tx, id)?.ok_or_else(|| StoreError::Missing {
        what: "image",
        name: id.to_owned(),
    })?;
    let by = used_by(tx, &row.id)?;
    if !by.is_empty() {
        return Err(StoreError::InUse {
            what: "image",
            name: row.name().to_owned(),
            by,
        });
    }
    tx.execute("DELETE FROM images WHERE id = ?1", [&row.id])?;
    Ok(row)
}

/// The blobs that an image refers to, in order: manifest, configuration, layers.
pub fn blobs(tx: &Transaction<'_>, id: &str) -> Result<Vec<BlobRow>, StoreError> {
    let mut statement =
        tx.prepare_cached("SELECT digest, size FROM image_blobs WHERE image = ?1 ORDER BY position")?;
    let blob = |row: &Row<'_>| {
        Ok(BlobRow {
            digest: row.get(0)?,
            size: unsigned(row, 1)?,
        })
    };
    Ok(statement.query_map([id], blob)?.collect::<Result<_, _>>()?)
}

/// Digests of all blobs that any image refers to.
pub fn blobs_in_use(tx: &Transaction<'_>) -> Result<BTreeSet<String>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT DISTINCT digest FROM image_blobs")?;
    let digests = statement
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(digests)
}

/// Bytes of an image's blobs, each counted once: all, and those that another image refers to as well.
pub fn blob_sizes(tx: &Transaction<'_>, id: &str) -> Result<(u64, u64), StoreError> {
    let mut statement = tx.prepare_cached(
        "SELECT COALESCE(SUM(size), 0), COALESCE(SUM(CASE WHEN EXISTS \
           (SELECT 1 FROM image_blobs AS other WHERE other.digest = own.digest AND other.image != ?1) \
           THEN size ELSE 0 END), 0) \
         FROM (SELECT DISTINCT digest, size FROM image_blobs WHERE image = ?1) AS own",
    )?;
    Ok(statement.query_row([id], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?)
}
