//! seccomp: the system calls that no adapter needs and that lead out, each answered with an error. It is a list of what is
//! refused, not of what is allowed: adapters are programs of any language. What is newer than the list is refused too.

use std::collections::BTreeMap;

use libc::{EPERM, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, sock_filter,
};

use super::{Policy, Ports};
use crate::config::Level;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

/// The first number that this list does not know. Those above are answered as by a kernel that does not know them, and so are
/// the numbers of the x32 interface, which begin far above.
const UNKNOWN_FROM: u32 = 470;

/// Refused whatever the arguments are.
const ALWAYS: &[c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Leaving the process group, which is what ends with the adapter.
    libc::SYS_setsid,
    libc::SYS_setpgid,
    // Parts of the kernel that go around the checks of others, or are large and seldom tried.
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_personality,
    libc::SYS_vmsplice,
    // Another view of the file system.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Files by another way than their path.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    // Memory and queues that all processes of a user share, whatever they may open.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semctl,
    libc::SYS_semtimedop,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
];

#[cfg(target_arch = "x86_64")]
const ALWAYS_HERE: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(target_arch = "aarch64")]
const ALWAYS_HERE: &[c_long] = &[];

/// Changes of a file's owner, mode, times and attributes, which Landlock does not know. They could lock others out of their own files,
/// the gateway too where the user is the gateway's, or let somebody in.
const METADATA: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SETXATTRAT,
    REMOVEXATTRAT,
    FILE_SETATTR,
];
/// Numbers that are the same everywhere, and that not each C library knows.
const FCHMODAT2: c_long = 452;
const SETXATTRAT: c_long = 463;
const REMOVEXATTRAT: c_long = 466;
const FILE_SETATTR: c_long = 469;

#[cfg(target_arch = "x86_64")]
const METADATA_HERE: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(target_arch = "aarch64")]
const METADATA_HERE: &[c_long] = &[];

#[cfg(target_arch = "x86_64")]
const FORKS_HERE: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(target_arch = "aarch64")]
const FORKS_HERE: &[c_long] = &[];

/// Namespaces that `clone` can make.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// The kind of a socket without its flags.
const SOCKET_KIND: u64 = 0xf;
/// The old way to packets, under any family.
const SOCK_PACKET: i32 = 10;
const MFD_NOEXEC_SEAL: u64 = 8;
/// They put words into the terminal's input.
const TIOCLINUX: u64 = 0x541c;

type Conditions = Vec<SeccompCondition>;

/// Installs the filters. They hold for this thread and whatever it becomes or starts.
pub(super) fn refuse(policy: &Policy) -> Result<(), String> {
    let refusals = Refusals::new(policy).map_err(|error| error.to_string())?;
    for filter in refusals.filters().map_err(|error| error.to_string())? {
        apply_filter(&filter).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Calls with the conditions under which they are refused; without conditions, always.
#[derive(Default)]
struct Refusals(BTreeMap<c_long, Vec<SeccompRule>>);

impl Refusals {
    fn new(policy: &Policy) -> Result<Self, seccompiler::BackendError> {
        let mut refusals = Self::default();
        refusals.always(ALWAYS);
        refusals.always(ALWAYS_HERE);
        refusals.always(METADATA);
        refusals.always(METADATA_HERE);
        for namespace in NAMESPACES {
            refusals.when(libc::SYS_clone, vec![flag(0, bits(namespace))?])?;
        }
        refusals.when(libc::SYS_ioctl, vec![equal(1, libc::TIOCSTI)?])?;
        refusals.when(libc::SYS_ioctl, vec![equal(1, TIOCLINUX)?])?;
        // What these change is what ends an adapter with its gateway, and where its memory lies.
        for option in [libc::PR_SET_PDEATHSIG, libc::PR_SET_MM, libc::PR_SET_PTRACER] {
            refusals.when(libc::SYS_prctl, vec![equal(0, bits(option))?])?;
        }
        // Limits of other processes of the same user.
        refusals.when(libc::SYS_prlimit64, vec![differs(0, 0)?])?;
        // Memory that can be executed as if it were a file.
        refusals.when(libc::SYS_memfd_create, vec![masked(1, MFD_NOEXEC_SEAL, 0)?])?;
        refusals.sockets(policy)?;
        if policy.level == Level::Strict {
            refusals.always(FORKS_HERE);
            refusals.when(libc::SYS_clone, vec![masked(0, bits(libc::CLONE_THREAD), 0)?])?;
            refusals.always(&[libc::SYS_memfd_create]);
        }
        Ok(refusals)
    }

    fn sockets(&mut self, policy: &Policy) -> Result<(), seccompiler::BackendError> {
        let (inet, inet6) = (bits(libc::AF_INET), bits(libc::AF_INET6));
        let families = [bits(libc::AF_UNIX), inet, inet6];
        self.when(
            libc::SYS_socket,
            families.iter().map(|family| differs(0, *family)).collect::<Result<_, _>>()?,
        )?;
        for kind in [libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_DCCP, SOCK_PACKET] {
            self.when(libc::SYS_socket, vec![masked(1, SOCKET_KIND, bits(kind))?])?;
        }
        let no_network = policy.connect.is_none() && policy.bind.is_none();
        for family in [inet, inet6] {
            let of_family = equal(0, family)?;
            if no_network {
                self.when(libc::SYS_socket, vec![of_family])?;
                continue;
            }
            // Landlock's rules for ports are for TCP alone: other protocols over these families would go around them.
            let known = [0, bits(libc::IPPROTO_TCP), bits(libc::IPPROTO_UDP)];
            let mut other: Conditions =
                known.iter().map(|protocol| differs(2, *protocol)).collect::<Result<_, _>>()?;
            other.push(of_family.clone());
            self.when(libc::SYS_socket, other)?;
            let sequenced = masked(1, SOCKET_KIND, bits(libc::SOCK_SEQPACKET))?;
            self.when(libc::SYS_socket, vec![of_family.clone(), sequenced])?;
            if !policy.resolves {
                let datagrams = masked(1, SOCKET_KIND, bits(libc::SOCK_DGRAM))?;
                self.when(libc::SYS_socket, vec![of_family, datagrams])?;
            }
        }
        if policy.bind.is_none() {
            // A socket that was never bound gets a free port when it listens, which Landlock does not see.
            self.always(&[libc::SYS_listen]);
        }
        if policy.connect != Ports::Any {
            // Connects without the call that Landlock watches.
            let fast_open = bits(libc::MSG_FASTOPEN);
            self.when(libc::SYS_sendto, vec![flag(3, fast_open)?])?;
            self.when(libc::SYS_sendmsg, vec![flag(2, fast_open)?])?;
            self.when(libc::SYS_sendmmsg, vec![flag(3, fast_open)?])?;
        }
        Ok(())
    }

    fn always(&mut self, calls: &[c_long]) {
        for call in calls {
            self.0.insert(*call, Vec::new());
        }
    }

    fn when(&mut self, call: c_long, conditions: Conditions) -> Result<(), seccompiler::BackendError> {
        let rule = SeccompRule::new(conditions)?;
        match self.0.get_mut(&call) {
            // Refused in any case already.
            Some(rules) if rules.is_empty() => {}
            Some(rules) => rules.push(rule),
            None => drop(self.0.insert(call, vec![rule])),
        }
        Ok(())
    }

    /// Several, because a filter has one answer for all its calls. The kernel asks all of them.
    fn filters(self) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
        let answer = |rules, errno: i32| -> Result<BpfProgram, seccompiler::BackendError> {
            let refused = SeccompAction::Errno(errno.unsigned_abs());
            SeccompFilter::new(rules, SeccompAction::Allow, refused, ARCHITECTURE)?.try_into()
        };
        // Its flags are in memory, where a filter cannot see them. C libraries go on with `clone`.
        let newer = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        Ok(vec![unknown_calls(), answer(newer, libc::ENOSYS)?, answer(self.0, EPERM)?])
    }
}

/// `if number >= UNKNOWN_FROM { ENOSYS } else { allowed }`; the other filters look at the architecture.
fn unknown_calls() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_NOT_LESS: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOWED: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let unknown = ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_NOT_LESS, jt: 0, jf: 1, k: UNKNOWN_FROM },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: unknown },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: ALLOWED },
    ]
}

/// The kernel reads these arguments as 32 bits; so do the conditions, lest the upper half hide them.
const WIDTH: SeccompCmpArgLen = SeccompCmpArgLen::Dword;

fn equal(index: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, WIDTH, SeccompCmpOp::Eq, value)
}

fn differs(index: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, WIDTH, SeccompCmpOp::Ne, value)
}

fn masked(index: u8, mask: u64, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, WIDTH, SeccompCmpOp::MaskedEq(mask), value)
}

fn flag(index: u8, flag: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    masked(index, flag, flag)
}

fn bits(number: i32) -> u64 {
    u64::from(number.cast_unsigned())
}
