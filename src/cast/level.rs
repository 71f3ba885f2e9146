//! CPU detection, in one place: which instruction sets the kernels are compiled for, which of
//! them this machine runs, and the one that is used.

use std::sync::OnceLock;

use crate::error::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Portable,
    Avx2,
    Avx512,
}

pub const VARIABLE: &str = "RECAST_SIMD";

impl Level {
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub fn available(self) -> bool {
        match self {
            Level::Portable => true,
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
            }
            Level::Avx512 => {
                Level::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn available(self) -> bool {
        self == Level::Portable
    }

    /// The level in use: the one `RECAST_SIMD` names, else the highest this CPU runs.
    /// Decided once per process.
    ///
    /// # Errors
    /// When `RECAST_SIMD` names no level, or one this CPU does not run.
    pub fn current() -> Result<Level, Error> {
        static CURRENT: OnceLock<Level> = OnceLock::new();
        if let Some(level) = CURRENT.get() {
            return Ok(*level);
        }
        #[expect(clippy::disallowed_methods, reason = "the one variable that the core reads")]
        let level = match std::env::var_os(VARIABLE) {
            Some(name) if !name.is_empty() => Level::named(&name.to_string_lossy())?,
            _ => Level::available_levels().last().expect("portable runs everywhere"),
        };
        Ok(*CURRENT.get_or_init(|| level))
    }

    pub fn available_levels() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|level| level.available())
    }

    fn named(name: &str) -> Result<Level, Error> {
        Level::available_levels().find(|level| level.name() == name).ok_or_else(|| {
            let names: Vec<_> = Level::available_levels().map(Level::name).collect();
            Error::NoSuchLevel {
                variable: VARIABLE,
                name: name.to_owned(),
                available: names.join(", "),
            }
        })
    }
}
