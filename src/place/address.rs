//! What people write in the place of a path, and what is said of it: an address such as
//! `s3://bucket/model`, or the id of a model on the Hub.

use std::path::Path;

use crate::error::Error;

/// Schemes that are recognized with one slash too, which is what a `pathlib.Path` makes of
/// `s3://bucket`.
const KNOWN: [&str; 10] = ["s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "file"];

/// The host of the Hub's pages.
const HUB: [&str; 2] = ["huggingface.co/", "hf.co/"];

/// What the Hub has besides models, as it stands in the place of an owner.
const OTHER_KINDS: [&str; 4] = ["datasets", "spaces", "kernels", "buckets"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Read,
    Write,
}

/// Refuses an address such as `s3://bucket/model`, which would otherwise be taken for the path of
/// a directory called `s3:`.
///
/// # Errors
/// When `path` begins with `SCHEME://`.
pub fn check_local(path: &Path, wanted: Use) -> Result<(), Error> {
    let text = path.to_string_lossy();
    let Some((scheme, rest)) = split_scheme(&text) else { return Ok(()) };
    let hint = match (scheme, wanted, HubId::in_address(scheme, rest)) {
        ("file", ..) => {
            let rest = rest.trim_start_matches("localhost").trim_start_matches('/');
            format!("give the plain path: /{rest}")
        }
        (_, Use::Read, Some(id)) => format!("download it first: {}", id.download()),
        (_, Use::Read, None) => "download it first, and give the local path".to_owned(),
        (_, Use::Write, Some(HubId { id, .. })) => format!(
            "give a local directory, and upload it when it is complete: `hf upload {id} DIRECTORY`"
        ),
        (_, Use::Write, None) => {
            "give a local directory, and upload it when it is complete".to_owned()
        }
    };
    Err(Error::NotLocal { path: path.to_owned(), scheme: scheme.to_owned(), hint })
}

/// The error for a source that is not there.
pub fn missing(path: &Path) -> Error {
    let id = path.to_str().filter(|text| !text.ends_with(".safetensors")).and_then(HubId::parse);
    // A directory of that name says that a path was meant.
    let id = id.filter(|id| !Path::new(id.owner()).exists());
    Error::NoSuchPath { path: path.to_owned(), download: id.map(|id| id.download()) }
}

/// The scheme that `text` begins with, and what follows its two slashes.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(":/")?;
    let mut characters = scheme.chars();
    let is_scheme = characters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && characters
            .all(|character| character.is_ascii_alphanumeric() || "+.-".contains(character));
    let is_known = || KNOWN.contains(&scheme) && !Path::new(&format!("{scheme}:")).exists();
    match rest.strip_prefix('/') {
        Some(rest) if is_scheme => Some((scheme, rest)),
        None if is_scheme && is_known() => Some((scheme, rest)),
        _ => None,
    }
}

/// A repository on the Hub.
struct HubId<'a> {
    id: &'a str,
    revision: Option<&'a str>,
}

impl<'a> HubId<'a> {
    /// The one that `text` names as people write it: `ORG/NAME`.
    fn parse(text: &'a str) -> Option<HubId<'a>> {
        let (owner, name) = text.split_once('/')?;
        (is_hub_name(owner) && is_hub_name(name)).then_some(HubId { id: text, revision: None })
    }

    /// The model in `hf://ORG/NAME@REVISION/FILE` or `https://huggingface.co/ORG/NAME/tree/REVISION`.
    fn in_address(scheme: &str, rest: &'a str) -> Option<HubId<'a>> {
        let rest = match scheme {
            "hf" => rest.strip_prefix("models/").unwrap_or(rest),
            "http" | "https" => HUB.iter().find_map(|host| rest.strip_prefix(host))?,
            _ => return None,
        };
        let rest = rest.split(['?', '#']).next()?;
        let mut slashes = rest.match_indices('/').map(|(at, _)| at);
        let _ = slashes.next()?;
        let (id, below) = rest.split_at(slashes.next().unwrap_or(rest.len()));
        let (id, at) = id.split_once('@').map_or((id, None), |(id, at)| (id, Some(at)));
        let view = |kind| below.strip_prefix(kind).and_then(|rest| rest.split('/').next());
        let revision = at.or_else(|| ["/tree/", "/resolve/", "/blob/"].iter().find_map(view));
        let found = HubId::parse(id)?;
        let is_model = !OTHER_KINDS.contains(&found.owner());
        is_model.then_some(HubId { revision: revision.filter(|name| is_hub_name(name)), ..found })
    }

    fn owner(&self) -> &str {
        self.id.split('/').next().unwrap_or_default()
    }

    fn download(&self) -> String {
        let name = self.id.split('/').next_back().unwrap_or_default();
        let revision = self.revision.map(|name| format!(" --revision {name}")).unwrap_or_default();
        format!("`hf download {}{revision} --local-dir {name}`", self.id)
    }
}

/// Whether `text` may be part of a Hub id. It is printed in a command, so it has no character that
/// a shell or an option parser minds.
fn is_hub_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
