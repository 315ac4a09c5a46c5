// SPDX-License-Identifier: GPL-2.0-only
/*
 * crash - what makes a kernel panic and can't be had from a shell
 *
 * `echo KIND > /sys/module/crash/parameters/act` does it, in the context of the
 * process that writes unless the kind says otherwise.  Reading
 * /sys/module/crash/parameters/kinds lists what there is, one a line, each
 * followed by the CONFIG option that this kernel lacks for it, if any.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bug.h>
#include <linux/err.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/objtool.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sched/task_stack.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/uaccess.h>

#include <asm/processor.h>

static int act_panic(void)
{
	panic("rig: asked for");
}

static int act_bug(void)
{
	BUG();
}

static int act_null_write(void)
{
	*(volatile int *)NULL = 0;
	return 0;
}

static int act_warn(void)
{
	WARN(1, "rig: asked for\n");
	return 0;
}

/* Taken twice, interrupts off: only an NMI gets through. */
static int act_deadlock(void)
{
	static DEFINE_SPINLOCK(lock);

	local_irq_disable();
	spin_lock(&lock);
	spin_lock(&lock);
	return 0;
}

/* Interrupts are served, nothing else runs. */
static int act_soft_lockup(void)
{
	preempt_disable();
	for (;;)
		cpu_relax();
	return 0;
}

static int act_hang(void)
{
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule();
	}
	return 0;
}

static void irq_panic(struct irq_work *work)
{
	panic("rig: asked for, in hard IRQ context");
}

static int act_hard_irq(void)
{
	static struct irq_work work;

	init_irq_work(&work, irq_panic);
	irq_work_queue(&work);
	return 0;
}

static void tasklet_panic(struct tasklet_struct *tasklet)
{
	panic("rig: asked for, in softirq context");
}

/* Softirqs that are off when one is raised run when they are on again, here. */
static int act_softirq(void)
{
	static struct tasklet_struct tasklet;

	tasklet_setup(&tasklet, tasklet_panic);
	local_bh_disable();
	tasklet_schedule(&tasklet);
	local_bh_enable();
	return 0;
}

static void timer_panic(struct timer_list *timer)
{
	panic("rig: asked for, in timer context");
}

static int act_timer(void)
{
	static struct timer_list timer;

	timer_setup(&timer, timer_panic, TIMER_PINNED);
	mod_timer(&timer, jiffies + HZ / 10);
	return 0;
}

static int thread_panic(void *unused)
{
	panic("rig: asked for, in a kernel thread");
}

static int act_thread(void)
{
	return PTR_ERR_OR_ZERO(kthread_run(thread_panic, NULL, "rig-crash"));
}

#define FRAME_BYTES 256

/* Bytes of stack that are left when the recursion stops: for panic(). */
#define HEADROOM 1024

static noinline int recurse(unsigned long until, int depth)
{
	volatile char frame[FRAME_BYTES];

	frame[depth % FRAME_BYTES] = depth;
	if ((unsigned long)frame < until)
		return depth;
	return recurse(until, depth + 1) + frame[depth % FRAME_BYTES];
}

/*
 * With VMAP_STACK the page below the stack is not mapped, and the recursion ends
 * there.  Without, there is no telling whose page it is: the recursion stops
 * short of it, and what marks the end of the stack is overwritten by hand.
 */
static int act_stack_overflow(void)
{
	unsigned long *end = end_of_stack(current);
	int depth;

	if (IS_ENABLED(CONFIG_VMAP_STACK))
		return recurse(0, 0);
	depth = recurse((unsigned long)end + HEADROOM, 0);
	*end = depth;
	schedule();
	return 0;
}

/* The frame of the page fault that `push` causes can't be pushed either. */
static int act_double_fault(void)
{
	local_irq_disable();
	asm volatile("mov %0, %%" _ASM_SP "\n\tpush %0" : : "r" (PAGE_SIZE) : "memory");
	return 0;
}
STACK_FRAME_NON_STANDARD(act_double_fault);

#ifdef CONFIG_X86_64
#define SPARSE_START	(1UL << 44)
#define SPARSE_STEP	(1UL << 30)	/* a PMD table and a page table each */
#else
#define SPARSE_START	(1UL << 28)
#define SPARSE_STEP	(1UL << 22)	/* a page table each */
#endif
#define SPARSE_PAGES	256

/* Does not crash: spreads the writer's memory, a page here and there, over as many tables as it can. */
static int act_spread(void)
{
	const unsigned long protection = PROT_READ | PROT_WRITE;
	const unsigned long flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	unsigned int i;

	for (i = 0; i < SPARSE_PAGES; i++) {
		unsigned long wanted = SPARSE_START + i * SPARSE_STEP;
		unsigned long address = vm_mmap(NULL, wanted, PAGE_SIZE, protection, flags, 0);

		if (IS_ERR_VALUE(address))
			return address;
		if (put_user(address, (unsigned long __user *)address))
			return -EFAULT;
	}
	return 0;
}

#ifdef CONFIG_SMP
#define LACKS_SMP NULL
#else
#define LACKS_SMP "CONFIG_SMP"	/* a spinlock is nothing */
#endif
#if defined(CONFIG_VMAP_STACK) || defined(CONFIG_SCHED_STACK_END_CHECK)
#define LACKS_STACK_CHECK NULL
#else
#define LACKS_STACK_CHECK "CONFIG_SCHED_STACK_END_CHECK"
#endif

static const struct kind {
	const char *name;
	int (*act)(void);
	const char *lacks;
} kinds[] = {
	{ "panic",		act_panic },
	{ "bug",		act_bug },
	{ "null-write",		act_null_write },
	{ "warn",		act_warn },
	{ "deadlock",		act_deadlock,		LACKS_SMP },
	{ "soft-lockup",	act_soft_lockup },
	{ "hang",		act_hang },
	{ "hard-irq",		act_hard_irq },
	{ "softirq",		act_softirq },
	{ "timer",		act_timer },
	{ "thread",		act_thread },
	{ "stack-overflow",	act_stack_overflow,	LACKS_STACK_CHECK },
	{ "double-fault",	act_double_fault },
	{ "spread",		act_spread },
};

static int set_act(const char *value, const struct kernel_param *param)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (sysfs_streq(value, kinds[i].name))
			return kinds[i].lacks ? -EOPNOTSUPP : kinds[i].act();
	}
	return -EINVAL;
}

static int get_kinds(char *buffer, const struct kernel_param *param)
{
	int length = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		length += scnprintf(buffer + length, PAGE_SIZE - length, "%s %s\n", kinds[i].name,
				    kinds[i].lacks ?: "");
	return length;
}

static const struct kernel_param_ops act_ops = { .set = set_act };
static const struct kernel_param_ops kinds_ops = { .get = get_kinds };

module_param_cb(act, &act_ops, NULL, 0200);
MODULE_PARM_DESC(act, "what to do, now");
module_param_cb(kinds, &kinds_ops, NULL, 0444);
MODULE_PARM_DESC(kinds, "what there is (read-only)");

MODULE_DESCRIPTION("makes the kernel panic in a given way");
MODULE_LICENSE("GPL");
