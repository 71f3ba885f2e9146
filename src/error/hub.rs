/// A model on the Hub, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// `ORG/NAME`, of characters that neither a shell nor an option parser minds.
    pub id: String,
    pub revision: Option<String>,
}

impl HubModel {
    /// The command that downloads it.
    pub fn download(&self) -> String {
        let HubModel { id, revision } = self;
        let name = id.rsplit('/').next().unwrap_or_default();
        let revision = revision.iter().map(|name| format!(" --revision {name}"));
        format!("`hf download {id}{} --local-dir {name}`", revision.collect::<String>())
    }

    /// The command that uploads it.
    pub fn upload(&self) -> String {
        format!("`hf upload {} DIRECTORY`", self.id)
    }
}
