/// An enum of causes from a table of `Variant { field: Type = example } "message" => hint;`, in
/// groups that are named after the exception in `recast.errors` that they become, or after what
/// else they are. An example is the word that stands for the value in docs/troubleshooting.md.
macro_rules! causes {
    ($(#[$meta:meta])* $Enum:ident $($class:literal {$(
        $Variant:ident $({$($field:ident: $Type:ty = $example:expr),+})?
            $message:literal $(, $argument:expr)* $(=> $hint:expr)?;
    )*})*) => {
        $(#[$meta])*
        #[derive(Debug, thiserror::Error)]
        pub enum $Enum {$($(
            #[error($message $(, $argument)*)]
            $Variant $({$($field: $Type),+})?,
        )*)*}

        impl $Enum {
            /// The exception in `recast.errors` that this becomes, or what else it is.
            pub fn class(&self) -> &'static str {
                match self {$($(Self::$Variant { .. } => $class,)*)*}
            }

            /// The way out.
            #[allow(unused_variables)]
            pub fn hint(&self) -> Option<String> {
                match self {$($(
                    Self::$Variant $({$($field),+})? => {
                        None$(.or($crate::error::causes::IntoHint::into_hint($hint)))?
                    }
                )*)*}
            }

            /// One of each.
            pub fn examples() -> Vec<$Enum> {
                vec![$($(Self::$Variant $({$($field: $example.into()),+})?,)*)*]
            }
        }
    };
}
pub(crate) use causes;

/// What a hint in the table may be: a text, or nothing in some cases.
pub(crate) trait IntoHint {
    fn into_hint(self) -> Option<String>;
}

impl IntoHint for &str {
    fn into_hint(self) -> Option<String> {
        Some(self.to_owned())
    }
}

impl IntoHint for String {
    fn into_hint(self) -> Option<String> {
        Some(self)
    }
}

impl IntoHint for Option<String> {
    fn into_hint(self) -> Option<String> {
        self
    }
}

/// What a library says of a text that it cannot read.
pub type Reason = Box<dyn std::error::Error + Send + Sync>;
