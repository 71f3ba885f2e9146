//! What people write in the place of a path, and what is said of it: an address such as
//! `s3://bucket/model`, or the id of a model on the Hub.

use std::path::Path;

use crate::error::{Error, HubModel};

/// Schemes that are recognized with one slash too, which is what a `pathlib.Path` makes of
/// `s3://bucket`.
const KNOWN: [&str; 10] = ["s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "file"];

/// The host of the Hub's pages.
const HUB: [&str; 2] = ["huggingface.co/", "hf.co/"];

/// What the Hub has besides models, in the position of an owner.
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
    let (path, scheme) = (path.to_owned(), scheme.to_owned());
    let model = hub_model_in(&scheme, rest);
    Err(match wanted {
        _ if scheme == "file" => {
            let rest = rest.trim_start_matches("localhost").trim_start_matches('/');
            Error::FileAddress { path, plain: Path::new("/").join(rest) }
        }
        Use::Read => Error::SourceAddress { path, scheme, model },
        Use::Write => Error::DestinationAddress { path, scheme, model },
    })
}

/// The error for a source that is not there.
pub fn missing(path: &Path) -> Error {
    let text = path.to_str().filter(|text| !text.ends_with(".safetensors"));
    // A directory of that name says that a path was meant.
    let model = text.and_then(hub_model).filter(|it| !Path::new(owner(&it.id)).exists());
    Error::NoSuchPath { path: path.to_owned(), model }
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

/// The model that `text` names as people write it: `ORG/NAME`.
fn hub_model(text: &str) -> Option<HubModel> {
    let (owner, name) = text.split_once('/')?;
    let is_id = is_hub_name(owner) && is_hub_name(name);
    is_id.then(|| HubModel { id: text.to_owned(), revision: None })
}

/// The model in `hf://ORG/NAME@REVISION/FILE` or `https://huggingface.co/ORG/NAME/tree/REVISION`.
fn hub_model_in(scheme: &str, rest: &str) -> Option<HubModel> {
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
    let revision = revision.filter(|name| is_hub_name(name)).map(str::to_owned);
    let model = hub_model(id).filter(|model| !OTHER_KINDS.contains(&owner(&model.id)))?;
    Some(HubModel { revision, ..model })
}

fn owner(id: &str) -> &str {
    id.split('/').next().unwrap_or_default()
}

/// Whether `text` may be part of a Hub id. It is printed in a command, so it has no character that
/// a shell or an option parser minds.
fn is_hub_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
