/*
 * kexec jump from user space: an image of a few bytes that returns at once, loaded with KEXEC_PRESERVE_CONTEXT.
 *
 *     jump load ADDRESS        kexec_load(2): the image is to lie there (physical, hexadecimal)
 *     jump load ADDRESS gdt    the same; before it returns, the image loads the GDT that the kernel had
 *     jump enter               reboot(2): comes back when the image has returned
 *
 * The exit status is 0 or the errno. kexec-tools can't be used: `kexec -e` says "kexec failed" when an image has
 * returned, and puts its purgatory before each image, which does not return.
 *
 * The image is entered by a call from relocate_kernel (arch/x86/kernel/relocate_kernel_{32,64}.S) and goes back as a
 * kernel would that was entered by a jump before: to its return address, with the address at which it is to be entered
 * next time on top of the stack ("get the re-entry point of the peer system"). A plain `ret`, as in the kernel's
 * selftest (tools/testing/selftests/kexec/test_kexec_jump.c), leaves none to kernels without 2cacf7f23a02 (6.14).
 *
 * The kernel has emptied its GDT before it enters the image. Back from there, x86_64 kernels without 07fa619f2a40
 * (6.14) and all i386 kernels rest on one that the image has loaded: they load segment registers from it. `gdt` does so.
 *
 * Freestanding, without a libc of either architecture.
 */

enum { KEXEC_PRESERVE_CONTEXT = 2, PAGE = 4096, STDERR = 2, EINVAL = 22 };

#ifdef __x86_64__
enum { SYS_WRITE = 1, SYS_EXIT = 60, SYS_REBOOT = 169, SYS_KEXEC_LOAD = 246 };
#else
enum { SYS_EXIT = 1, SYS_WRITE = 4, SYS_REBOOT = 88, SYS_KEXEC_LOAD = 283 };
#endif
/* <linux/reboot.h> */
#define REBOOT_MAGIC1 0xfee1deadu
#define REBOOT_MAGIC2 672274793u
#define REBOOT_KEXEC 0x45584543u

/*
 * Two pages: code in the first, in the second a count of its entries. `image` is entered first; each entry names the
 * other as the next one.
 */
#ifdef __x86_64__
#define ENTRY(NAME, NEXT)                                                                                              \
	NAME ":\n"                                                                                                     \
	"	pop	%rax\n"                                                                                        \
	"	incl	image_count(%rip)\n"                                                                           \
	"	cmpw	$0, image_gdt(%rip)\n"                                                                         \
	"	je	1f\n"                                                                                          \
	"	lgdt	image_gdt(%rip)\n"                                                                             \
	"1:	lea	" NEXT "(%rip), %rcx\n"                                                                        \
	"	push	%rcx\n"                                                                                        \
	"	jmp	*%rax\n"
#else
#define ENTRY(NAME, NEXT)                                                                                              \
	NAME ":\n"                                                                                                     \
	"	pop	%eax\n"                                                                                        \
	"	call	0f\n"                                                                                          \
	"0:	pop	%ecx\n"                                                                                        \
	"	incl	image_count - 0b(%ecx)\n"                                                                      \
	"	cmpw	$0, image_gdt - 0b(%ecx)\n"                                                                    \
	"	je	1f\n"                                                                                          \
	"	lgdt	image_gdt - 0b(%ecx)\n"                                                                        \
	"1:	lea	" NEXT " - 0b(%ecx), %ecx\n"                                                                   \
	"	push	%ecx\n"                                                                                        \
	"	jmp	*%eax\n"
#endif

__asm__(".data\n"
	".balign 4096\n" ENTRY("image", "image_again") ENTRY("image_again", "image")
	".balign 16\n"
	"image_gdt: .skip 16\n" /* limit, base; none as long as the limit is 0 */
	".balign 4096\n"
	"image_count: .long 0\n"
	"image_end:\n"
	".text\n");

extern char image[], image_gdt[], image_end[];

struct segment {
	const void *buf;
	unsigned long bufsz;
	unsigned long mem;
	unsigned long memsz;
};

static long system_call(long number, long a, long b, long c, long d)
{
	long result;
#ifdef __x86_64__
	register long fourth __asm__("r10") = d;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
			 : "rcx", "r11", "memory");
#else
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
#endif
	return result;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* 0 for what is no hexadecimal number; nothing can be loaded there. */
static unsigned long hexadecimal(const char *text)
{
	unsigned long value = 0;

	for (; *text; text++) {
		int digit = *text >= '0' && *text <= '9' ? *text - '0' : *text >= 'a' && *text <= 'f' ? *text - 'a' + 10 : -1;

		if (digit < 0)
			return 0;
		value = value << 4 | digit;
	}
	return value;
}

static long load(unsigned long address, int with_gdt)
{
	struct segment segment = { image, image_end - image, address, 2 * PAGE };

	/* Of user space SGDT is, as long as CR4.UMIP is clear: the GDT's limit and its virtual address in the kernel. */
	if (with_gdt)
		__asm__ volatile("sgdt (%0)" : : "r"(image_gdt) : "memory");
	return system_call(SYS_KEXEC_LOAD, address, 1, (long)&segment, KEXEC_PRESERVE_CONTEXT);
}

static void say(const char *text)
{
	const char *end = text;

	while (*end)
		end++;
	system_call(SYS_WRITE, STDERR, (long)text, end - text, 0);
}

__attribute__((used)) void start(long *stack)
{
	long count = stack[0], result = -EINVAL;
	char **words = (char **)(stack + 1);

	if (count == 2 && same(words[1], "enter"))
		result = system_call(SYS_REBOOT, REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_KEXEC, 0);
	else if ((count == 3 || (count == 4 && same(words[3], "gdt"))) && same(words[1], "load") && hexadecimal(words[2]))
		result = load(hexadecimal(words[2]), count == 4);
	else
		say("jump load ADDRESS [gdt] | jump enter\n");
	system_call(SYS_EXIT, -result, 0, 0, 0);
	__builtin_unreachable();
}

__asm__(".globl _start\n"
	"_start:\n"
#ifdef __x86_64__
	"	mov	%rsp, %rdi\n"
	"	and	$-16, %rsp\n"
	"	call	start\n"
#else
	"	mov	%esp, %eax\n"
	"	and	$-16, %esp\n"
	"	sub	$12, %esp\n"
	"	push	%eax\n"
	"	call	start\n"
#endif
);
