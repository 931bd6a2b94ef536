//! What the CUDA driver's error codes mean for latch, in sentences. Nothing here calls the driver, so all of it is
//! tested without one.

use super::super::driver::Failure;
use super::super::runtime::bytes_in_words;
use crate::base::Error;

/// PTX ISA of the shipped files (`tools/ptx.py`; `tests/device/ptx.rs` reads every header).
pub(super) const SHIPPED_PTX: (u32, u32) = (8, 1);
/// Least compute capability: bf16 tensor cores and asynchronous copies.
const LEAST_CAPABILITY: (u32, u32) = (8, 0);

/// A version, major and minor.
type Version = (u32, u32);

/// PTX ISA, the CUDA version that introduced it, and the first driver branch of that CUDA version.
const PTX_VERSIONS: [(Version, Version, u32); 12] = [
    ((7, 7), (11, 7), 515),
    ((7, 8), (11, 8), 520),
    ((8, 0), (12, 0), 525),
    ((8, 1), (12, 1), 530),
    ((8, 2), (12, 2), 535),
    ((8, 3), (12, 3), 545),
    ((8, 4), (12, 4), 550),
    ((8, 5), (12, 5), 555),
    ((8, 6), (12, 7), 565),
    ((8, 7), (12, 8), 570),
    ((8, 8), (12, 9), 575),
    ((9, 0), (13, 0), 580),
];

/// The CUDA version and the driver that PTX of a version needs, in words.
fn needs(ptx: (u32, u32)) -> String {
    match PTX_VERSIONS.iter().find(|(version, ..)| *version >= ptx) {
        Some((_, (major, minor), driver)) => format!("CUDA {major}.{minor} (driver {driver} or newer)"),
        None => "a newer CUDA than 13.0".into(),
    }
}

/// What keeps libcuda from being used at all.
pub(super) fn no_driver() -> Error {
    Error::device(
        "no CUDA driver: libcuda.so.1 cannot be opened",
        "install NVIDIA's driver (530 or newer), or use --device cpu",
    )
}

/// The CUDA version that `cuDriverGetVersion` means by `version` (12010 is CUDA 12.1).
pub(super) fn cuda_version(version: u32) -> (u32, u32) {
    (version / 1000, version % 1000 / 10)
}

/// What is wrong with a driver whose `cuDriverGetVersion` says `version` (12010 is CUDA 12.1); `None` when it will do.
pub(super) fn driver_too_old(version: u32) -> Option<Error> {
    let found = cuda_version(version);
    let least = PTX_VERSIONS.iter().find(|(ptx, ..)| *ptx == SHIPPED_PTX).map(|(_, cuda, _)| *cuda);
    if least.is_none_or(|least| found >= least) {
        return None;
    }
    let reads = PTX_VERSIONS.iter().rev().find(|(_, cuda, _)| *cuda <= found);
    let reads =
        reads.map_or("older PTX only".into(), |((major, minor), ..)| format!("PTX up to {major}.{minor}"));
    Some(Error::device(
        format!(
            "the CUDA driver is too old: it is one for CUDA {}.{} and reads {reads}; latch's kernels are PTX {}.{}, \
             which needs {}",
            found.0,
            found.1,
            SHIPPED_PTX.0,
            SHIPPED_PTX.1,
            needs(SHIPPED_PTX)
        ),
        "install a newer driver, or use --device cpu",
    ))
}

/// What is wrong with a device of a compute capability; `None` when it will do.
pub(super) fn capability_too_low(name: &str, found: (u32, u32)) -> Option<Error> {
    (found < LEAST_CAPABILITY).then(|| {
        Error::device(
            format!(
                "{name} has compute capability {}.{}; latch's kernels need {}.{} (Ampere, 2020) or newer for bf16 \
                 tensor cores and asynchronous copies",
                found.0, found.1, LEAST_CAPABILITY.0, LEAST_CAPABILITY.1
            ),
            "use --device cpu",
        )
    })
}

/// A device number that the driver does not have.
pub(super) fn no_such_device(ordinal: usize, count: usize) -> Error {
    let problem = match count {
        0 => "the CUDA driver is there and finds no GPU".to_string(),
        1 => format!("no CUDA device {ordinal}: there is one, cuda:0"),
        _ => format!("no CUDA device {ordinal}: there are {count}, cuda:0 to cuda:{}", count - 1),
    };
    let advice = match count {
        0 => {
            "check that `nvidia-smi -L` lists one, that CUDA_VISIBLE_DEVICES does not hide it, that this user may open \
             /dev/nvidia* (a container needs --gpus all), and under MIG that there is an instance; or use --device cpu"
        }
        _ => "name one of them, or use --device cpu",
    };
    Error::device(problem, advice)
}

/// A driver that answers its first calls with an error. Nothing has run by then: what means later that the device is lost
/// (999) is here what the driver says when it cannot reach its kernel module.
pub(super) fn no_answer(doing: &str, code: Code) -> Failure {
    const OPERATING_SYSTEM: u32 = 304;
    const UNKNOWN: u32 = 999;
    match code.number {
        OPERATING_SYSTEM | UNKNOWN => Failure::Refused(Error::device(
            format!("the CUDA driver does not start: {code}, from {doing}"),
            "check that /dev/nvidia-uvm is there and may be opened (`nvidia-modprobe -u -c 0` makes it; a container needs \
             --gpus all); after a machine has slept, `rmmod nvidia_uvm && modprobe nvidia_uvm` or a restart helps; or use \
             --device cpu",
        )),
        _ => failure(doing, code, &[]),
    }
}

/// Pinned host memory that cannot be had.
pub(super) fn no_pinned_memory(bytes: usize) -> Failure {
    Failure::Refused(Error::device(
        format!("{} of pinned host memory cannot be had", bytes_in_words(bytes)),
        "free host memory, or raise the limit of locked memory (`ulimit -l`)",
    ))
}

/// A file that the driver's compiler does not take. `code` is its error, `log` what it printed.
pub(super) fn file_refused(stem: &str, ptx: (u32, u32), code: Code, log: &str) -> Failure {
    const UNSUPPORTED_PTX_VERSION: u32 = 222;
    const NO_BINARY_FOR_GPU: u32 = 209;
    const JIT_COMPILER_NOT_FOUND: u32 = 221;
    const JIT_COMPILATION_DISABLED: u32 = 223;
    if code.is_lost() {
        return failure("loading kernels", code, &[]);
    }
    let log = log.trim().lines().take(4).collect::<Vec<_>>().join(" | ");
    let log = if log.is_empty() { String::new() } else { format!("; the driver's compiler says: {log}") };
    let file = format!("ptx/{stem}.ptx");
    Failure::Refused(match code.number {
        UNSUPPORTED_PTX_VERSION => Error::device(
            format!("{file} is PTX {}.{}, which this driver does not read{log}", ptx.0, ptx.1),
            format!("it needs {}; install that, or use --device cpu", needs(ptx)),
        ),
        NO_BINARY_FOR_GPU => Error::device(
            format!("{file} is for another kind of GPU than this one{log}"),
            "use --device cpu, and report the GPU's name",
        ),
        JIT_COMPILER_NOT_FOUND => Error::device(
            format!("{file} cannot be compiled: the driver's compiler (libnvidia-ptxjitcompiler) is missing"),
            "install the driver completely; in a container, mount that library too",
        ),
        JIT_COMPILATION_DISABLED => Error::device(
            format!("{file} cannot be compiled: the driver's compiler is switched off"),
            "unset CUDA_DISABLE_PTX_JIT and CUDA_DISABLE_JIT, or use --device cpu",
        ),
        _ => Error::device(
            format!("{file} was refused by the driver's compiler, {code}{log}"),
            "the file is damaged: make it again with tools/ptx.py, or install latch again",
        ),
    })
}

/// An error of the driver: its number and its name.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub(super) number: u32,
    pub(super) name: String,
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.number)
    }
}

impl Code {
    /// Errors after which nothing runs in this process any more: those of which cuda.h says that the process must be
    /// ended. (226: an error that the GPU has contained.)
    fn is_lost(&self) -> bool {
        matches!(self.number, 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 999)
    }
}

/// What became of `doing` (a sentence's subject, such as `a launch of kernel x`). `recent` are the kernels launched since
/// somebody last waited: an error shows at a later call than the one that made it.
pub(super) fn failure(doing: &str, code: Code, recent: &[&str]) -> Failure {
    const OUT_OF_MEMORY: u32 = 2;
    const STUB_LIBRARY: u32 = 34;
    const DEVICE_UNAVAILABLE: u32 = 46;
    const NO_DEVICE: u32 = 100;
    const LAUNCH_OUT_OF_RESOURCES: u32 = 701;
    const SYSTEM_NOT_READY: u32 = 802;
    const SYSTEM_DRIVER_MISMATCH: u32 = 803;
    const COMPAT_NOT_SUPPORTED_ON_DEVICE: u32 = 804;
    let refused = |problem: String, advice: &str| Failure::Refused(Error::device(problem, advice));
    match code.number {
        OUT_OF_MEMORY => Failure::OutOfMemory,
        STUB_LIBRARY => refused(
            "no CUDA driver: the libcuda that was found is the toolkit's stub for linking".into(),
            "put the driver's own libcuda.so.1 first in the library path, or use --device cpu",
        ),
        NO_DEVICE => Failure::Refused(no_such_device(0, 0)),
        DEVICE_UNAVAILABLE => refused(
            format!(
                "{doing} failed: the GPU is not to be had ({code}): another process has it for itself, or nobody may"
            ),
            "look at its compute mode (`nvidia-smi -q -d COMPUTE`; `nvidia-smi -c DEFAULT` shares it), end the other \
             process, or use --device cpu",
        ),
        SYSTEM_NOT_READY => refused(
            format!("{doing} failed: a part of the driver is not running yet ({code})"),
            "on a machine with NVSwitch start the fabric manager, of the driver's very version (`systemctl status \
             nvidia-fabricmanager`), or use --device cpu",
        ),
        COMPAT_NOT_SUPPORTED_ON_DEVICE => refused(
            format!(
                "{doing} failed: the libcuda that was found is CUDA's forward-compatibility package, which this GPU or \
                 its driver does not take ({code})"
            ),
            "take the toolkit's folder `compat` out of the library path, so that the driver's own libcuda.so.1 is found, or \
             use --device cpu",
        ),
        SYSTEM_DRIVER_MISMATCH => refused(
            "the CUDA driver's library and kernel module are of different versions".into(),
            "restart the machine (the driver was updated under a running system), or use --device cpu",
        ),
        LAUNCH_OUT_OF_RESOURCES => refused(
            format!(
                "{doing} was refused: a block needs more registers or shared memory than a multiprocessor has"
            ),
            "report the GPU's name and this kernel; use --device cpu meanwhile",
        ),
        _ if code.is_lost() => {
            let what = match code.number {
                700 => "a kernel or a copy used an illegal address",
                716 => "a kernel used a misaligned address",
                702 => "a kernel ran longer than the display's watchdog allows",
                715 => "a kernel met an illegal instruction",
                214 | 220 | 226 => "the GPU reports a memory or link error of its hardware",
                _ => "a kernel failed",
            };
            let since = match recent {
                [] => String::new(),
                names => format!("; launched since the last wait: {}", names.join(", ")),
            };
            Failure::Lost {
                problem: format!("{what}: {code}, seen by {doing}{since}"),
                advice: "this process cannot use the GPU any more: run the command again (a run folder goes on where \
                         it stopped); --device sim names the very access"
                    .into(),
            }
        }
        _ => refused(
            format!("{doing} failed: the CUDA driver says {code}"),
            "check `nvidia-smi`, or use --device cpu",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(number: u32, name: &str) -> Code {
        Code { number, name: name.into() }
    }

    fn sentence(failure: Failure) -> String {
        match failure {
            Failure::Refused(error) => error.to_string(),
            Failure::Lost { problem, advice } => format!("{problem}\n{advice}"),
            Failure::OutOfMemory => "out of memory".into(),
        }
    }

    #[test]
    fn old_drivers_are_told_both_versions() {
        assert!(driver_too_old(12_010).is_none() && driver_too_old(13_000).is_none());
        let message = driver_too_old(11_080).unwrap().to_string();
        for says in ["CUDA 11.8", "PTX up to 7.8", "PTX 8.1", "CUDA 12.1 (driver 530 or newer)"] {
            assert!(message.contains(says), "{says}: {message}");
        }
        assert!(driver_too_old(12_000).unwrap().to_string().contains("PTX up to 8.0"));
        assert!(driver_too_old(10_020).unwrap().to_string().contains("older PTX only"));
    }

    #[test]
    fn old_devices_are_told_what_they_lack() {
        assert!(
            capability_too_low("A100", (8, 0)).is_none() && capability_too_low("B200", (10, 0)).is_none()
        );
        let message = capability_too_low("Tesla T4", (7, 5)).unwrap().to_string();
        assert!(
            message.contains("Tesla T4 has compute capability 7.5") && message.contains("need 8.0"),
            "{message}"
        );
    }

    #[test]
    fn device_numbers_that_are_not_there() {
        assert!(no_such_device(0, 0).to_string().contains("finds no GPU"));
        assert!(no_such_device(1, 1).to_string().contains("no CUDA device 1: there is one, cuda:0"));
        assert!(no_such_device(4, 4).to_string().contains("cuda:0 to cuda:3"));
    }

    #[test]
    fn refused_files_are_named_with_the_log() {
        let says = |number, name, log| sentence(file_refused("rmsnorm", (8, 8), code(number, name), log));
        let message = says(222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "");
        assert!(
            message.contains("ptx/rmsnorm.ptx is PTX 8.8") && message.contains("driver 575"),
            "{message}"
        );
        let message = says(218, "CUDA_ERROR_INVALID_PTX", "ptxas: line 9: Parsing error\n\n");
        assert!(
            message.contains("INVALID_PTX (218)") && message.contains("line 9: Parsing error"),
            "{message}"
        );
        assert!(says(221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "").contains("libnvidia-ptxjitcompiler"));
        assert!(says(223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "").contains("unset CUDA_DISABLE_PTX_JIT"));
    }

    #[test]
    fn a_lost_context_names_the_kernels_since_the_last_wait() {
        let failure =
            failure("a download", code(700, "CUDA_ERROR_ILLEGAL_ADDRESS"), &["rope_fwd_f32", "gelu_fwd_f32"]);
        assert!(matches!(failure, Failure::Lost { .. }));
        let message = sentence(failure);
        for says in [
            "illegal address",
            "CUDA_ERROR_ILLEGAL_ADDRESS (700)",
            "rope_fwd_f32, gelu_fwd_f32",
            "run the command again",
        ] {
            assert!(message.contains(says), "{says}: {message}");
        }
    }

    #[test]
    fn a_driver_that_does_not_answer_has_lost_nothing() {
        for number in [304, 999] {
            let message = sentence(no_answer("asking", code(number, "CUDA_ERROR_X")));
            assert!(
                message.contains("does not start: CUDA_ERROR_X") && message.contains("nvidia-uvm"),
                "{message}"
            );
            assert!(!message.contains("a kernel"), "{message}");
        }
        for (number, says) in [
            (46, "nvidia-smi -q -d COMPUTE"),
            (100, "finds no GPU"),
            (802, "fabric manager"),
            (803, "restart the machine"),
            (804, "`compat`"),
        ] {
            let message = sentence(no_answer("asking", code(number, "CUDA_ERROR_X")));
            assert!(message.contains(says) && message.contains("--device cpu"), "{number}: {message}");
        }
    }

    #[test]
    fn what_the_gpu_contained_is_lost_too() {
        for number in [226, 721] {
            assert!(
                matches!(failure("a wait", code(number, "CUDA_ERROR_X"), &[]), Failure::Lost { .. }),
                "{number}"
            );
        }
    }

    #[test]
    fn memory_is_the_runtimes_to_explain_and_the_rest_keeps_its_number() {
        assert!(matches!(failure("x", code(2, "CUDA_ERROR_OUT_OF_MEMORY"), &[]), Failure::OutOfMemory));
        let message = sentence(failure("a graph's launch", code(401, "CUDA_ERROR_ILLEGAL_STATE"), &[]));
        assert!(
            message.contains("a graph's launch failed") && message.contains("ILLEGAL_STATE (401)"),
            "{message}"
        );
    }
}
