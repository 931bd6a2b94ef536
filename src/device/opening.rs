//! Which device a name means, and what is still held when one is closed.

use super::runtime::bytes_in_words;
use super::{Arena, Device, Held, cuda};
use crate::base::{Error, Result};

/// Why a device was taken where its name left that open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which one, and why no other.
    pub sentence: String,
    /// Whether people should be told at once: not where a machine without a driver runs on its CPU.
    pub aloud: bool,
}

impl Device {
    /// The device a command line names: `auto`, `cpu`, `cuda`, `cuda:N` or `sim`.
    ///
    /// `auto` is the first CUDA device where a driver and a device answer that latch's kernels run on, else the CPU;
    /// [`Device::choose`] says why.
    ///
    /// # Errors
    /// A name that is none of these. For `cuda`, what is missing: the driver, a newer one, a device, or a newer one.
    pub fn open(name: &str) -> Result<Device> {
        Ok(Device::choose(name)?.0)
    }

    /// The same, with what there is to say about a choice that the name left open.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn choose(name: &str) -> Result<(Device, Option<Choice>)> {
        let named = |device| Ok((device, None));
        match name {
            "cpu" => named(Device::cpu()),
            "sim" => named(Device::simulated()),
            "auto" => {
                let (device, choice) = auto();
                Ok((device, Some(choice)))
            }
            _ if name == "cuda" || name.starts_with("cuda:") => {
                let ordinal = match name.strip_prefix("cuda:") {
                    None => 0,
                    Some(digits) => digits.parse().map_err(|_| {
                        Error::input(
                            "--device",
                            format!("`{digits}` is not a device number"),
                            "write cuda:0, cuda:1, ...",
                        )
                    })?,
                };
                named(Device::Gpu(cuda::open(cuda::probe(ordinal)?)?))
            }
            other => Err(Error::input(
                "--device",
                format!("unknown device `{other}`"),
                "known devices: auto, cpu, cuda, cuda:N, sim",
            )),
        }
    }

    /// How many CUDA devices `cuda:0`, `cuda:1`, ... there are; whether latch runs on each of them, [`Device::open`] says.
    ///
    /// # Errors
    /// No driver, or one that is too old.
    pub fn cuda_count() -> Result<usize> {
        Ok(cuda::devices()?.0)
    }

    /// Waits for the device and reports the memory that is still held: whoever has dropped all tensors has leaked it.
    ///
    /// # Errors
    /// What went wrong on the device since somebody last waited for it.
    pub fn close(self) -> Result<Vec<Held>> {
        match self {
            Device::Cpu(_) => Ok(Vec::new()),
            Device::Gpu(launcher) => {
                launcher.synchronise()?;
                Ok(launcher.statistics().held)
            }
        }
    }
}

/// The first GPU that will do, else the CPU.
fn auto() -> (Device, Choice) {
    let taken = match cuda::is_present() {
        false => None,
        true => Some(cuda::probe(0).and_then(cuda::open)),
    };
    match taken {
        None => {
            let sentence = "device auto: cpu, since this machine has no CUDA driver".into();
            (Device::cpu(), Choice { sentence, aloud: false })
        }
        Some(Ok(launcher)) => {
            let sentence = format!("device auto: {}", launcher.name());
            (Device::Gpu(launcher), Choice { sentence, aloud: true })
        }
        Some(Err(error)) => {
            let sentence = format!(
                "device auto: cpu, although this machine has a CUDA driver, because of this: {error}"
            );
            (Device::cpu(), Choice { sentence, aloud: true })
        }
    }
}

/// What was leaked, in words; `None` when nothing was.
pub fn leak_in_words(device: &str, held: &[Held]) -> Option<String> {
    if held.is_empty() {
        return None;
    }
    let parts: Vec<String> = Arena::ALL
        .iter()
        .map(|arena| (arena, held.iter().filter(|block| block.arena == *arena)))
        .filter(|(_, blocks)| blocks.clone().next().is_some())
        .map(|(arena, blocks)| {
            format!("{} {}", arena.name(), bytes_in_words(blocks.map(|block| block.bytes).sum()))
        })
        .collect();
    Some(format!(
        "{device} was closed while {} blocks of its memory were in use: {}; report this as a fault of latch",
        held.len(),
        parts.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Dtype;

    #[test]
    fn unknown_devices_are_named() {
        let message = Device::open("tpu").unwrap_err().to_string();
        assert!(message.contains("unknown device `tpu`") && message.contains("auto, cpu, cuda"), "{message}");
        let message = Device::open("cuda:x").unwrap_err().to_string();
        assert!(message.contains("`x` is not a device number"), "{message}");
    }

    #[test]
    fn a_name_that_leaves_no_choice_has_nothing_to_say() {
        assert_eq!(Device::choose("cpu").unwrap().1, None);
        assert_eq!(Device::choose("sim").unwrap().1, None);
        let (device, choice) = Device::choose("auto").unwrap();
        let sentence = choice.unwrap().sentence;
        assert!(sentence.starts_with(&format!("device auto: {}", device.name())), "{sentence}");
    }

    #[test]
    fn leaks_are_listed_by_what_they_are_for() {
        let device = Device::simulated();
        let kept = {
            let _arena = Arena::Weights.enter();
            [device.allocate(Dtype::F32, 512).unwrap(), device.allocate(Dtype::U32, 512).unwrap()]
        };
        let held = device.clone().close().unwrap();
        let words = leak_in_words("sim", &held).unwrap();
        assert!(words.contains("2 blocks") && words.contains("in use: weights 4.0 KiB;"), "{words}");
        drop(kept);
        assert_eq!(leak_in_words("sim", &device.close().unwrap()), None);
    }
}
