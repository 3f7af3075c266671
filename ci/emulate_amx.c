/* Lets a process see a processor with AMX, and computes its tile instructions: ci/emulate_amx.py.

   Preloaded. The libraries at hand have the invalid instruction in place of `cpuid` (0f 0b) and of
   `xgetbv` (0f 0b 90); AMX's own are invalid on a processor without it. Each raises SIGILL, and the
   handler does what the instruction would: Intel's Software Developer's Manual, volume 2, "AMX
   Instruction Set Reference". */

#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };
enum { NO_PREFIX, PREFIX_66, PREFIX_F3, PREFIX_F2 };

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} Config;

typedef struct {
  int prefix, mode, reg, rm, vvvv, opcode, length, has_index;
  uint64_t address, stride;
} Instruction;

static __thread Config config __attribute__((tls_model("initial-exec")));
static __thread uint8_t tiles[TILES][ROWS][ROW_BYTES]
    __attribute__((aligned(64), tls_model("initial-exec")));
static long products;

static void give_up(const char *why, const uint8_t *code) {
  char text[160];
  int n = snprintf(text, sizeof text, "emulate_amx: %s:", why);
  for (int i = 0; i < 12; i++) n += snprintf(text + n, sizeof text - n, " %02x", code[i]);
  text[n++] = '\n';
  if (write(STDERR_FILENO, text, n) < 0) _exit(1);
  abort();
}

static uint64_t general(const greg_t *registers, int number) {
  static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                 REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                 REG_R12, REG_R13, REG_R14, REG_R15};
  return registers[places[number]];
}

static void tell_features(greg_t *registers) {
  uint32_t leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 0 && a < 0x1e) a = 0x1e;
  if (leaf == 7 && part == 0) d |= 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25; /* and AVX512-FP16 */
  if (leaf == 0xd && part == 0) a |= 1u << 17 | 1u << 18;
  if (leaf == 0x1d || leaf == 0x1e) a = b = c = d = 0;
  if (leaf == 0x1d && part == 0) a = 1;
  if (leaf == 0x1d && part == 1) {
    a = TILES * ROWS * ROW_BYTES | ROWS * ROW_BYTES << 16;
    b = ROW_BYTES | TILES << 16;
    c = ROWS;
  }
  if (leaf == 0x1e && part == 0) b = ROWS | ROW_BYTES << 8;
  registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
}

static void tell_state(greg_t *registers) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"((uint32_t)registers[REG_RCX]));
  if (registers[REG_RCX] == 0) low |= 1u << 17 | 1u << 18;
  registers[REG_RAX] = low, registers[REG_RDX] = high;
}

static int32_t number_at(const uint8_t *code) {
  int32_t value;
  memcpy(&value, code, sizeof value);
  return value;
}

/* Reads a VEX instruction of three bytes' prefix, of the map 0f38. */
static Instruction decode(const uint8_t *code, const greg_t *registers) {
  if (code[0] != 0xc4 || (code[1] & 31) != 2 || code[2] & 0x84) give_up("unknown", code);
  int index_8 = code[1] & 0x40 ? 0 : 8, base_8 = code[1] & 0x20 ? 0 : 8;
  Instruction it = {.prefix = code[2] & 3, .vvvv = ~code[2] >> 3 & 15, .opcode = code[3]};
  it.mode = code[4] >> 6, it.reg = code[4] >> 3 & 7, it.rm = code[4] & 7;
  const uint8_t *next = code + 5;
  int base = it.rm, far = it.mode == 2;
  if (it.mode != 3) {
    if (it.rm == 4) {
      int scale = *next >> 6, index = (*next >> 3 & 7) | index_8;
      base = *next++ & 7;
      it.has_index = 1;
      if (index != 4) it.stride = general(registers, index) << scale;
    } else if (it.mode == 0 && it.rm == 5) {
      give_up("an address from rip", code);
    }
    if (it.mode == 0 && base == 5) far = 1;
    else it.address = general(registers, base | base_8);
    if (it.mode == 1) it.address += (int8_t)*next++;
    if (far) it.address += number_at(next), next += 4;
  }
  it.length = next - code;
  return it;
}

static void configure(const Instruction *it, const uint8_t *code) {
  if (it->mode == 3 && it->prefix == PREFIX_F2) {
    memset(tiles[it->reg], 0, sizeof tiles[0]);
  } else if (it->mode != 3 && it->prefix == PREFIX_66) {
    memcpy((void *)(it->address + it->stride), &config, sizeof config);
  } else if (it->prefix == NO_PREFIX) {
    memset(tiles, 0, sizeof tiles);
    if (it->mode == 3) memset(&config, 0, sizeof config);
    else memcpy(&config, (void *)(it->address + it->stride), sizeof config);
  } else {
    give_up("unknown", code);
  }
}

static void move_tile(const Instruction *it, const uint8_t *code) {
  int rows = config.rows[it->reg], bytes = config.row_bytes[it->reg];
  if (!rows || rows > ROWS || bytes > ROW_BYTES || !it->has_index || it->prefix == NO_PREFIX)
    give_up("a tile without its shape", code);
  if (it->prefix != PREFIX_F3) memset(tiles[it->reg], 0, sizeof tiles[0]);
  for (int i = 0; i < rows; i++) {
    void *place = (void *)(it->address + it->stride * i);
    if (it->prefix == PREFIX_F3) memcpy(place, tiles[it->reg][i], bytes);
    else memcpy(tiles[it->reg][i], place, bytes);
  }
}

static float widened(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static int byte_of(uint8_t byte, int is_signed) { return is_signed ? (int8_t)byte : byte; }

static void multiply_bytes(const Instruction *it, int m, int k, int32_t *sums) {
  int one_signed = it->prefix == PREFIX_F2 || it->prefix == PREFIX_F3;
  int other_signed = it->prefix == PREFIX_F2 || it->prefix == PREFIX_66;
  for (int i = 0; i < 4; i++) {
    int factor = byte_of(tiles[it->rm][m][4 * k + i], one_signed);
    for (int n = 0; n < ROW_BYTES / 4; n++)
      sums[n] += factor * byte_of(tiles[it->vvvv][k][4 * n + i], other_signed);
  }
}

static void multiply_halves(const Instruction *it, int m, int k, float *sums) {
  uint16_t one[ROW_BYTES / 2], other[ROW_BYTES / 2];
  memcpy(one, tiles[it->rm][m], ROW_BYTES);
  memcpy(other, tiles[it->vvvv][k], ROW_BYTES);
  for (int i = 0; i < 2; i++)
    for (int n = 0; n < ROW_BYTES / 4; n++)
      sums[n] += widened(one[2 * k + i]) * widened(other[2 * n + i]);
}

static void multiply(const Instruction *it, const uint8_t *code) {
  int d = it->reg, of_bytes = it->opcode == 0x5e;
  int rows = config.rows[d], bytes = config.row_bytes[d], inner = config.row_bytes[it->rm] / 4;
  if (it->mode != 3 || config.rows[it->rm] != rows || config.row_bytes[it->vvvv] != bytes ||
      config.rows[it->vvvv] != inner || (!of_bytes && it->prefix != PREFIX_F3))
    give_up("a product of other shapes or types", code);
  for (int m = 0; m < rows; m++) {
    for (int k = 0; k < inner; k++)
      if (of_bytes) multiply_bytes(it, m, k, (int32_t *)tiles[d][m]);
      else multiply_halves(it, m, k, (float *)tiles[d][m]);
    memset(tiles[d][m] + bytes, 0, ROW_BYTES - bytes);
  }
  __atomic_fetch_add(&products, 1, __ATOMIC_RELAXED);
}

static void handle(int signal_number, siginfo_t *info, void *context) {
  (void)signal_number, (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *code = (const uint8_t *)registers[REG_RIP];
  if (code[0] == 0x0f && code[1] == 0x0b) {
    int state = code[2] == 0x90;
    state ? tell_state(registers) : tell_features(registers);
    registers[REG_RIP] += state ? 3 : 2;
    return;
  }
  Instruction it = decode(code, registers);
  switch (it.opcode) {
    case 0x49: configure(&it, code); break;
    case 0x4b: move_tile(&it, code); break;
    case 0x5c:
    case 0x5e: multiply(&it, code); break;
    default: give_up("unknown", code);
  }
  registers[REG_RIP] += it.length;
}

/* Grants the use of tiles, which a kernel without them refuses; all else goes to the kernel. */
long syscall(long number, ...) {
  enum { GET_SUPPORTED = 0x1021, GET_PERMITTED = 0x1022, REQUEST = 0x1023 };
  long a[6];
  va_list given;
  va_start(given, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(given, long);
  va_end(given);
  if (number == SYS_arch_prctl && a[0] >= GET_SUPPORTED && a[0] <= REQUEST) {
    if (a[0] != REQUEST) *(uint64_t *)a[1] = 0x600e7;
    return 0;
  }
  register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  if (result >= 0 || result < -4095) return result;
  errno = -result;
  return -1;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGILL, &action, NULL);
}

__attribute__((destructor)) static void end(void) {
  if (products) fprintf(stderr, "emulate_amx: %ld products of tiles\n", products);
}
