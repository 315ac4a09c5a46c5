// SPDX-License-Identifier: GPL-2.0-only
/*
 * damage - the module's parameters, its record, and its place on the crash path
 *
 * A kprobe on machine_kexec(), when it is called for a crash image, does what the
 * parameter `what` names, so that a test which claims to notice such damage
 * can be shown to notice it.  A plain kexec is left alone.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/ptrace.h>
#include <linux/string.h>

#include <asm/io.h>
#include <asm/special_insns.h>

#include "damage.h"

struct rig_record *rig_sabotage_record;

static char *what = "";
module_param(what, charp, 0444);
MODULE_PARM_DESC(what, "what is damaged");

char *pattern = "";
module_param(pattern, charp, 0444);
MODULE_PARM_DESC(pattern, "user-page: text that the page holds twice in a row");

unsigned long long note;
module_param(note, ullong, 0444);
MODULE_PARM_DESC(note, "crash-note: physical address of the note");

/*
 * /proc/kallsyms has the data symbols of modules only with CONFIG_KALLSYMS_ALL,
 * hence /sys/module/damage/parameters/record.
 */
static char record[sizeof("0x0123456789abcdef")];
module_param_string(record, record, sizeof(record), 0444);
MODULE_PARM_DESC(record, "physical address of the record of what was damaged (read-only)");

static const struct kind {
	const char *name;
	void (*act)(struct kimage *image, pgd_t *pgd);
	void (*find)(pgd_t *pgd);	/* called earlier: what takes many instructions */
	void (*instead)(struct kimage *image);	/* entered in place of machine_kexec() */
} kinds[] = {
	{ "pgd",		damage_pgd },
	{ "way",		damage_pgd,		.instead = take_old_way },
	{ "table",		damage_table },
	{ "pte",		damage_pte },
	{ "protection",		damage_protection },
	{ "user-twin",		damage_user_twin },
	{ "user-page",		damage_user_page,	find_user_page },
	{ "crash-note",		damage_crash_note },
	{ "crash-region",	damage_crash_region },
	{ "segment",		damage_segment },
	{ "entry-point",	damage_entry_point },
	{ "unowned-page",	damage_unowned_page },
};

static const struct kind *chosen;

static void write_word(u64 *word, u64 value)
{
	unsigned long cr0 = read_cr0();

	/*
	 * The crash region is mapped read-only while an image is loaded
	 * (arch_kexec_protect_crashkres()).  Not write_cr0(): it pins WP.
	 */
	asm volatile("mov %0, %%cr0" : : "r" (cr0 & ~X86_CR0_WP) : "memory");
	WRITE_ONCE(*word, value);
	asm volatile("mov %0, %%cr0" : : "r" (cr0) : "memory");
}

void damage_bytes(void *at, const void *bytes, size_t size)
{
	struct rig_record *rec = rig_sabotage_record;
	u64 *word = PTR_ALIGN_DOWN(at, sizeof(u64));
	size_t offset = at - (void *)word;
	u64 before = READ_ONCE(*word);
	u64 after = before;

	if (offset + size > sizeof(u64) || rec->count == RECORD_WORDS)
		return;
	memcpy((void *)&after + offset, bytes, size);
	if (before == after)
		return;
	write_word(word, after);
	rec->word[rec->count++] = (struct rig_word) {
		.address = __pa(word),
		.before = before,
		.after = after,
	};
}

void damage_complement(void *at, size_t size)
{
	u8 bytes[sizeof(u64)];
	size_t i;

	for (i = 0; i < size; i++)
		bytes[i] = ~((u8 *)at)[i];
	damage_bytes(at, bytes, size);
}

static pgd_t *live_pgd(void)
{
	return __va(__read_cr3() & CR3_MASK);
}

static int at_machine_kexec(struct kprobe *probe, struct pt_regs *regs)
{
	struct kimage *image = (struct kimage *)regs_get_kernel_argument(regs, 0);

	if (image->type != KEXEC_TYPE_CRASH)
		return 0;
	rig_sabotage_record->pgd_phys = __pa(live_pgd());
	chosen->act(image, live_pgd());
	if (!chosen->instead || !rig_sabotage_record->count)
		return 0;
	/* Non-zero: the handler has set where it goes on.  The argument stays where it is. */
	regs->ip = (unsigned long)chosen->instead;
	return 1;
}

/*
 * Before machine_kexec(), whose every instruction may be under observation: a
 * search is not to be part of what is observed.
 */
static int at_machine_crash_shutdown(struct kprobe *probe, struct pt_regs *regs)
{
	if (chosen->find)
		chosen->find(live_pgd());
	return 0;
}

static struct kprobe act_probe = {
	.symbol_name = "machine_kexec",
	.pre_handler = at_machine_kexec,
};

static struct kprobe find_probe = {
	.symbol_name = "machine_crash_shutdown",
	.pre_handler = at_machine_crash_shutdown,
};

static struct kprobe *const probes[] = { &act_probe, &find_probe };

static int find_kind(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (!strcmp(what, kinds[i].name)) {
			chosen = &kinds[i];
			return 0;
		}
	}
	pr_err("what=%s is not known; valid:\n", what);
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		pr_err("  what=%s\n", kinds[i].name);
	return -EINVAL;
}

static void give_back(void)
{
	free_unowned_page();
	free_pages((unsigned long)rig_sabotage_record, BLOCK_ORDER);
}

static int __init damage_init(void)
{
	int err = find_kind();

	if (err)
		return err;
	/* __va() and __pa() hold for it: GFP_KERNEL memory is never highmem. */
	rig_sabotage_record = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, BLOCK_ORDER);
	if (!rig_sabotage_record)
		return -ENOMEM;
	if (!take_unowned_page()) {
		give_back();
		return -ENOMEM;
	}
	memcpy(rig_sabotage_record->magic, "RIGSABOT", sizeof(rig_sabotage_record->magic));
	rig_sabotage_record->version = RECORD_VERSION;
	scnprintf(record, sizeof(record), "0x%llx",
		  (unsigned long long)__pa(rig_sabotage_record));

	/* Only where it is needed: a kprobe changes kernel text. */
	err = register_kprobes((struct kprobe **)probes, chosen->find ? 2 : 1);
	if (err) {
		pr_err("no kprobes: %d\n", err);
		give_back();
		return err;
	}
	pr_info("will damage the %s on a crash, record at physical %s\n", what, record);
	return 0;
}

static void __exit damage_exit(void)
{
	unregister_kprobes((struct kprobe **)probes, chosen->find ? 2 : 1);
	give_back();
}

module_init(damage_init);
module_exit(damage_exit);

MODULE_DESCRIPTION("damages one thing on a crash that must survive it");
MODULE_LICENSE("GPL");
