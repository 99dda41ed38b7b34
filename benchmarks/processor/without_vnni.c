/* Makes a process believe that its x86 processor ends at AVX2: no AVX-512, no VNNI, no AMX.
 *
 * Linux can make the CPUID instruction fault (arch_prctl(2), ARCH_SET_CPUID). The fault is answered here with what the
 * processor says, less those features, and reads of /proc/cpuinfo are sent to a copy that leaves them out. Kernels are
 * then chosen, run and timed at full speed as on a processor that has no more. Loaded by LD_PRELOAD; the flag is
 * inherited by threads and forks, and set again in every program that is executed with the same environment.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_SET_CPUID
#define ARCH_SET_CPUID 0x1012
#endif

static struct sigaction others; /* what handled segmentation faults before */

static void set_cpuid(int enabled) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, enabled); }

static uint32_t without(uint32_t word, const int *bits) {
    for (; *bits >= 0; bits++) word &= ~(1u << *bits);
    return word;
}

/* Bits of CPUID leaf 7 as in Intel's manual, volume 2A. */
static const int EBX[] = {16, 17, 21, 26, 27, 28, 30, 31, -1}; /* AVX512 F DQ IFMA PF ER CD BW VL */
static const int ECX[] = {1, 6, 11, 12, 14, -1};               /* AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
static const int EDX[] = {2, 3, 8, 22, 23, 24, 25, -1};        /* AVX512 4VNNIW 4FMAPS VP2INTERSECT FP16, AMX */
static const int EAX1[] = {4, 5, 21, 23, -1};                  /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
static const int EDX1[] = {4, 5, 8, 10, 19, -1};               /* AVX-VNNI-INT8, NE-CONVERT, AMX-COMPLEX, VNNI-INT16, AVX10 */

static void answer(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
    if (info->si_code == SI_KERNEL && instruction[0] == 0x0F && instruction[1] == 0xA2) {
        uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX], a, b, c, d;
        set_cpuid(1);
        __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
        set_cpuid(0);
        if (leaf == 7 && subleaf == 0) {
            b = without(b, EBX);
            c = without(c, ECX);
            d = without(d, EDX);
        } else if (leaf == 7 && subleaf == 1) {
            a = without(a, EAX1);
            d = without(d, EDX1);
        }
        registers[REG_RAX] = a;
        registers[REG_RBX] = b;
        registers[REG_RCX] = c;
        registers[REG_RDX] = d;
        registers[REG_RIP] += 2;
        return;
    }
    if (others.sa_flags & SA_SIGINFO) {
        others.sa_sigaction(signal_number, info, context);
    } else if (others.sa_handler != SIG_DFL && others.sa_handler != SIG_IGN) {
        others.sa_handler(signal_number);
    } else {
        signal(SIGSEGV, SIG_DFL); /* the instruction runs again and ends the process */
    }
}

__attribute__((constructor)) static void limit(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &others);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        fputs("without_vnni: this processor or kernel cannot make CPUID fault\n", stderr);
        _exit(69); /* EX_UNAVAILABLE */
    }
}

/* Whoever would take the segmentation faults over is kept for those that are none of ours. */
int sigaction(int number, const struct sigaction *new_action, struct sigaction *old_action) {
    static int (*real)(int, const struct sigaction *, struct sigaction *);
    if (!real) real = dlsym(RTLD_NEXT, "sigaction");
    if (number == SIGSEGV && new_action && new_action->sa_sigaction != answer) {
        if (old_action) *old_action = others;
        others = *new_action;
        return 0;
    }
    return real(number, new_action, old_action);
}

static const char *redirected(const char *path) {
    const char *copy = getenv("WITHOUT_VNNI_CPUINFO");
    return path && copy && !strcmp(path, "/proc/cpuinfo") ? copy : path;
}

#define OPEN(name)                                                                  \
    int name(const char *path, int flags, ...) {                                    \
        static int (*real)(const char *, int, ...);                                 \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                  \
        va_list rest;                                                               \
        va_start(rest, flags);                                                      \
        int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0;         \
        va_end(rest);                                                               \
        return real(redirected(path), flags, mode);                                 \
    }
OPEN(open)
OPEN(open64)

#define FOPEN(name)                                                                 \
    FILE *name(const char *path, const char *mode) {                                \
        static FILE *(*real)(const char *, const char *);                           \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                  \
        return real(redirected(path), mode);                                        \
    }
FOPEN(fopen)
FOPEN(fopen64)
