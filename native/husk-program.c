/*
 * Programs (part of the husk): brought to where their header says, and run operation by operation. Slots hold the descriptors that came
 * with one, and results.
 */
#include "husk.h"

#define EIO_ 5
#define EINVAL_ 22
#define ESTALE_ 116

#define F_SETFD_ 2
#define FD_CLOEXEC_ 1
#define PAGE_MASK_ 4095UL
#define MADV_DONTNEED_ 4
#define MADV_POPULATE_WRITE_ 23

static uint64_t slots[HUSK_SLOTS];
/* The program that came last, for each place: the last one resumes, and threads return through frames that may lie in either. */
static struct place {
	uint64_t at, bytes; /* where it may have pages; 0 bytes: none came */
	uint64_t kept_from, kept_end;
	uint64_t mapped; /* bytes, once a program was too large for the room */
} places[2];

static uint64_t argument(const struct program_op *op, int index)
{
	uint64_t value = op->args[index];
	if (op->slot_mask & (1u << index))
		return slots[value & (HUSK_SLOTS - 1)] + (value >> 8);
	return value;
}

static long run_syscall(const struct program_op *op)
{
	long args[6];
	for (int i = 0; i < 6; i++)
		args[i] = (long)argument(op, i);
	return raw6(op->nr, args[0], args[1], args[2], args[3], args[4], args[5]);
}

/* struct stat of x86-64, the fields that identify a file. */
struct kernel_stat {
	uint64_t dev, inode, links;
	uint32_t mode, uid, gid, pad;
	uint64_t rdev;
	int64_t size, block_bytes, blocks;
	int64_t atime_s, atime_ns, mtime_s, mtime_ns, ctime_s, ctime_ns;
	int64_t unused[3];
};
_Static_assert(sizeof(struct kernel_stat) == 144, "struct stat");

static long check_identity(long fd, const struct file_identity *want)
{
	struct kernel_stat is;
	long result = raw(__NR_fstat, fd, &is);
	if (failed(result))
		return result;
	bool same = is.inode == want->inode && (uint64_t)is.size == want->size && is.mtime_s == want->mtime_s &&
		    is.mtime_ns == want->mtime_ns && is.ctime_s == want->ctime_s && is.ctime_ns == want->ctime_ns;
	return same ? 0 : -ESTALE_;
}

static long install(long fd, long target, bool cloexec)
{
	if (fd == target)
		return raw(__NR_fcntl, fd, F_SETFD_, cloexec ? FD_CLOEXEC_ : 0);
	long result = raw(__NR_dup3, fd, target, cloexec ? O_CLOEXEC_ : 0);
	if (failed(result))
		return result;
	return raw(__NR_close, fd);
}

/* What the server has lower by now, as another shell or supervisor started it, cannot be raised: of each pair the lower ones hold. */
static long limit(uint64_t resource, uint64_t soft, uint64_t hard)
{
	uint64_t has[2];
	long result = raw(__NR_prlimit64, 0, resource, 0, has);
	if (failed(result))
		return result;
	uint64_t want[2] = { soft, hard < has[1] ? hard : has[1] };
	if (want[0] > want[1])
		want[0] = want[1];
	/* Nearly all are what every husk has. */
	if (want[0] == has[0] && want[1] == has[1])
		return 0;
	return raw(__NR_prlimit64, 0, resource, want, 0);
}

/* The clone would keep these pages for as long as it lives. */
static void drop_programs(void)
{
	for (const struct place *place = places; place < places + 2; place++) {
		uint64_t from = place->kept_from & ~PAGE_MASK_, to = (place->kept_end + PAGE_MASK_) & ~PAGE_MASK_;
		if (from > 0)
			raw(__NR_madvise, place->at, from, MADV_DONTNEED_);
		if (place->bytes > to)
			raw(__NR_madvise, place->at + to, place->bytes - to, MADV_DONTNEED_);
	}
}

static long run_op(const struct program_op *op, uint32_t index)
{
	switch (op->kind) {
	case OP_SYSCALL:
		return run_syscall(op);
	case OP_STAMP:
		stamp(op->args[0]);
		return 0;
	case OP_INSTALL:
		return install((long)argument(op, 0), (long)argument(op, 1), op->args[2] != 0);
	case OP_POKE:
		if (op->args[2] == 4)
			*(volatile uint32_t *)argument(op, 0) = (uint32_t)argument(op, 1);
		else
			*(volatile uint64_t *)argument(op, 0) = argument(op, 1);
		return 0;
	case OP_LOAD:
		return *(volatile int32_t *)argument(op, 0);
	case OP_IDENTITY:
		return check_identity((long)argument(op, 0), (const struct file_identity *)argument(op, 1));
	case OP_THREAD:
		return make_thread((const struct thread_state *)argument(op, 0), argument(op, 1) != 0);
	case OP_TOUCH: {
		/* Writes without changing anything: the kernel copies the page. */
		const uint64_t *pages = (const uint64_t *)argument(op, 0);
		for (uint64_t i = 0; i < op->args[1]; i++)
			__asm__ volatile("lock orb $0, (%0)" : : "r"(pages[i]) : "memory");
		return 0;
	}
	case OP_RELEASE:
		return release_threads(argument(op, 0) != 0);
	case OP_SPARES:
		return make_spares(argument(op, 0));
	case OP_REPORT:
		send_report(0, index);
		return 0;
	case OP_GIVE:
		return give((long)argument(op, 0), op->args[1]);
	case OP_LIMIT:
		return limit(op->args[0], op->args[1], op->args[2]);
	case OP_RESUME: {
		const struct thread_state *state = (const struct thread_state *)argument(op, 0);
		drop_programs(); /* this operation, too */
		thread_main(state);
	}
	default:
		return -EINVAL_;
	}
}

/* Room for programs of the usual size, faulted in ahead as far as most reach: copying one there costs a tenth of mapping it and faulting on it. */
void make_room(void)
{
	const uint64_t rooms[2][2] = { { HUSK_PROGRAM_AT, HUSK_PROGRAM_ROOM }, { HUSK_RESUME_AT, HUSK_RESUME_ROOM } };
	for (int i = 0; i < 2; i++) {
		long result = raw(__NR_mmap, rooms[i][0], rooms[i][1], PROT_RW_, MAP_PRIVATE_ | MAP_FIXED_ | MAP_ANONYMOUS_, -1, 0);
		if (failed(result))
			give_up(result, 0);
	}
	raw(__NR_madvise, HUSK_PROGRAM_AT, HUSK_PROGRAM_AHEAD, MADV_POPULATE_WRITE_);
}

/* Brings a program to where its header says, in place of the one that was there. */
static const struct program_header *load_program(long program, const struct husk_run *run)
{
	struct program_header header;
	long got = raw(__NR_pread64, program, &header, sizeof header, 0);
	if (got != sizeof header || (header.base != HUSK_PROGRAM_AT && header.base != HUSK_RESUME_AT) || run->program_bytes == 0 ||
	    run->program_bytes > HUSK_PROGRAM_BYTES_MAX)
		give_up(-EPROTO_, 0);
	struct place *place = &places[header.base == HUSK_RESUME_AT];
	place->at = header.base;
	place->kept_from = header.kept_from;
	place->kept_end = header.kept_end;
	uint64_t room = header.base == HUSK_RESUME_AT ? HUSK_RESUME_ROOM : HUSK_PROGRAM_ROOM;
	if (!place->mapped && run->program_bytes <= room) {
		place->bytes = room;
		got = raw(__NR_pread64, program, header.base, run->program_bytes, 0);
		if (got != (long)run->program_bytes)
			give_up(failed(got) ? got : -EPROTO_, 0);
		raw(__NR_close, program);
		return (const struct program_header *)header.base;
	}
	if (place->mapped > run->program_bytes)
		raw(__NR_munmap, header.base, place->mapped);
	place->mapped = place->bytes = run->program_bytes;
	long result = raw(__NR_mmap, header.base, run->program_bytes, PROT_RW_, MAP_PRIVATE_ | MAP_FIXED_, program, 0);
	if (failed(result))
		give_up(result, 0);
	raw(__NR_close, program);
	return (const struct program_header *)header.base;
}

static void run_program(const struct program_header *header, const struct husk_run *run)
{
	if (header->magic != PROGRAM_MAGIC || header->version != HUSK_VERSION || header->total_bytes > run->program_bytes ||
	    header->ops_at + (uint64_t)header->op_count * sizeof(struct program_op) > header->total_bytes)
		give_up(-EPROTO_, 0);
	const struct program_op *ops = (const struct program_op *)((uint64_t)header + header->ops_at);
	for (uint32_t i = 0; i < header->op_count; i++) {
		const struct program_op *op = &ops[i];
		long result = run_op(op, i);
		if (failed(result) && !(op->flags & OP_FLAG_MAY_FAIL))
			give_up(result, i);
		if ((op->flags & OP_FLAG_EXPECT) && result != (long)op->expect)
			give_up(-EIO_, i);
		if (op->result_slot != NO_SLOT)
			slots[op->result_slot & (HUSK_SLOTS - 1)] = (uint64_t)result;
	}
}

void run_next(void)
{
	struct husk_run run;
	long program = receive_run(&run, slots);
	keep_init_above(run.fd_base);
	begin_report();
	run_program(load_program(program, &run), &run);
	send_report(0, 0);
}
