//! One of each cause, for tests and the documentation.

use super::{DestinationFault, Error, HeaderFault, JsonFault, PickleFault, ScaleFault};

/// One of each error, those with a fault once for each fault.
pub fn examples() -> Vec<Error> {
    let plain = Error::examples().into_iter().flat_map(|example| match example {
        Error::Json { path, .. } => {
            let fault = |fault| Error::Json { path: path.clone(), fault };
            JsonFault::examples().into_iter().map(fault).collect()
        }
        Error::Header { path, .. } => {
            let fault = |fault| Error::Header { path: path.clone(), fault };
            HeaderFault::examples().into_iter().map(fault).collect()
        }
        Error::Pickle { path, .. } => {
            let fault = |fault| Error::Pickle { path: path.clone(), fault };
            PickleFault::examples().into_iter().map(fault).collect()
        }
        Error::Destination { path, .. } => {
            let fault = |fault| Error::Destination { path: path.clone(), fault };
            DestinationFault::examples().into_iter().map(fault).collect()
        }
        Error::Scales { path, tensor, scheme, .. } => {
            let fault = |fault| {
                let (path, tensor, scheme) = (path.clone(), tensor.clone(), scheme.clone());
                Error::Scales { path, tensor, scheme, fault: Box::new(fault), more: 0 }
            };
            ScaleFault::examples().into_iter().map(fault).collect()
        }
        other => vec![other],
    });
    plain.collect()
}
