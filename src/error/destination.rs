use super::causes::causes;

const ELSEWHERE: &str = "give another directory";
const MOVE_AWAY: &str = "move it away, or give another destination";

causes! {
    /// Why a model cannot be put at a destination.
    DestinationFault
    "OutputError" {
        NotADirectory
            "exists and is not a directory"
            => "give a directory that does not exist yet";
        EmptyName
            "the name of the destination is empty"
            => "give a directory";
        NotEmpty
            "the destination is not empty"
            => "give a new or empty directory, or --overwrite to replace the model there";
        ParentOfMissing
            "contains '..' below a directory that does not exist"
            => "give a plain path";
        IsSource
            "the destination is the source"
            => ELSEWHERE;
        InsideSource
            "the destination is inside the source"
            => "give a directory outside it";
        HoldsSource
            "the destination contains the source"
            => ELSEWHERE;
        SourceInStaging
            "the source is inside DEST/.recast"
            => "move it out first";
        NamedLikeStaging
            "the source has a file named '.recast', which recast uses for its own folder"
            => "rename that file, or convert without it";
        DirectoryInTheWay
            "is a directory where the result has a file"
            => MOVE_AWAY;
        FileInTheWay
            "is not a directory, where the result has one"
            => MOVE_AWAY;
        MountPoint
            "is a mount point and cannot be replaced"
            => MOVE_AWAY;
        OtherFileSystem
            "is on another file system, to which nothing can be renamed"
            => MOVE_AWAY;
        SameButForCase
            "differs only in case from another file, and that file system ignores case"
            => "give a destination on another file system, or rename one of them";
    }
}
