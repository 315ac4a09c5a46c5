// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is kept for the crash kernel, and memory that nobody has reason to touch.
 */

#include <linux/elf.h>
#include <linux/elfcore.h>
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/stddef.h>

#include <asm/io.h>
#include <asm/user.h>

#include "damage.h"

/* The low half of the saved instruction pointer in the NT_PRSTATUS note at `note`. */
void damage_crash_note(struct kimage *image, pgd_t *pgd)
{
	size_t ip = sizeof(struct elf_note) + ALIGN(sizeof("CORE"), 4) +
		    offsetof(struct elf_prstatus, pr_reg) +
		    offsetof(struct user_regs_struct, ip);

	if (note)
		damage_complement(__va(note) + ip, sizeof(u32));
}

static bool in_segment(struct kimage *image, unsigned long address)
{
	unsigned long i;

	for (i = 0; i < image->nr_segments; i++) {
		const struct kexec_segment *s = &image->segment[i];

		if (address >= s->mem && address < s->mem + s->memsz)
			return true;
	}
	return false;
}

/*
 * In the crash region, but in none of the image's segments: the word before the
 * topmost segment that does not adjoin another one.
 */
void damage_crash_region(struct kimage *image, pgd_t *pgd)
{
	unsigned long top = 0;
	unsigned long i;

	for (i = 0; i < image->nr_segments; i++) {
		unsigned long start = image->segment[i].mem;

		if (start > top && !in_segment(image, start - 1))
			top = start;
	}
	damage_complement(__va(top - sizeof(u64)), sizeof(u64));
}

/* In the largest of the image's segments: purgatory's checksum no longer holds. */
void damage_segment(struct kimage *image, pgd_t *pgd)
{
	const struct kexec_segment *largest = &image->segment[0];
	unsigned long i;

	for (i = 1; i < image->nr_segments; i++) {
		if (image->segment[i].memsz > largest->memsz)
			largest = &image->segment[i];
	}
	damage_complement(__va(largest->mem), sizeof(u64));
}

/* The first instruction of the new image becomes UD2, of which the machine dies there. */
void damage_entry_point(struct kimage *image, pgd_t *pgd)
{
	static const u8 ud2[] = { 0x0f, 0x0b };

	damage_bytes(__va(image->start), ud2, sizeof(ud2));
}

static unsigned long unowned;

bool take_unowned_page(void)
{
	unowned = get_zeroed_page(GFP_KERNEL);
	return unowned;
}

void free_unowned_page(void)
{
	free_page(unowned);
}

/* A page that holds nothing, and which nobody but this module knows of. */
void damage_unowned_page(struct kimage *image, pgd_t *pgd)
{
	damage_complement((void *)unowned, sizeof(u64));
}
