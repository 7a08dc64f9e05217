//! A child some of whose calls fail: without io_uring, by a seccomp filter as container engines set
//! one (the kernel's own switch, `kernel.io_uring_disabled`, would be the whole machine's), or on a
//! medium that takes nothing. The filter is put on between fork and exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set to anything, this variable has every proxy of the tests run without io_uring.
const VARIABLE: &str = "DISCOBOT_SECCOMP";

/// All of io_uring.
const IO_URING: &[libc::c_long] =
    &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// How the proxy writes bodies.
pub const WRITES: &[libc::c_long] = &[libc::SYS_pwrite64];

/// How it gives them their names.
pub const RENAMES: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
];

/// What Docker's and containerd's own profiles answer.
pub const EPERM: i32 = libc::EPERM;

/// What profiles answer whose library does not know the call.
pub const ENOSYS: i32 = libc::ENOSYS;

/// Has `command` run under the filter where the environment asks for it.
pub fn heed_environment(command: &mut Command) {
    if std::env::var_os(VARIABLE).is_some() {
        forbid_io_uring(command, EPERM);
    }
}

/// Whether a program started here without our filter may use io_uring.
pub fn has_io_uring() -> bool {
    if std::env::var_os(VARIABLE).is_some() {
        return false;
    }
    // SAFETY: no parameters at all are an invalid argument for a kernel that allows the call.
    let code = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<u8>()) };
    code < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Has `command`, and all it starts, get `errno` from every call of io_uring.
pub fn forbid_io_uring(command: &mut Command, errno: i32) {
    refuse(command, IO_URING, errno);
}

/// Has `command`, and all it starts, get `errno` from these calls.
pub fn refuse(command: &mut Command, calls: &[libc::c_long], errno: i32) {
    let filter = program(calls, errno);
    let install = move || {
        let program = libc::sock_fprog {
            len: filter.len() as libc::c_ushort,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: plain numbers; the program outlives the call, which copies it.
        let codes = unsafe {
            [
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program),
            ]
        };
        if codes == [0, 0] { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes two system calls and allocates nothing, as it must after a fork.
    unsafe { command.pre_exec(install) };
}

/// The filter, in the kernel's classic BPF. It looks at the call's number alone.
fn program(calls: &[libc::c_long], errno: i32) -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    // The number lies first in `seccomp_data`.
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for (at, call) in calls.iter().enumerate() {
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        let to_refusal = (calls.len() - at) as u8;
        program.push(libc::sock_filter { code, jt: to_refusal, jf: 0, k: *call as u32 });
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let refusal = libc::SECCOMP_RET_ERRNO | errno as u32;
    program.push(statement(libc::BPF_RET | libc::BPF_K, refusal));
    program
}
