/*
 * Loaded into a process by `--import`: its wall clock is off by TORTURE_CLOCK_SHIFT_MS. Timers and the monotonic clock
 * stay true, as on a machine whose clock was set wrong. SIGUSR2 sets it off by TORTURE_CLOCK_STEP_MS instead, while the process runs.
 */
let shift = Number(process.env.TORTURE_CLOCK_SHIFT_MS ?? 0);
process.on('SIGUSR2', () => {
  shift = Number(process.env.TORTURE_CLOCK_STEP_MS ?? 0);
});
const TrueDate = Date;

globalThis.Date = class ShiftedDate extends TrueDate {
  constructor(...given) {
    if (given.length === 0) super(TrueDate.now() + shift);
    else super(...given);
  }

  static now() {
    return TrueDate.now() + shift;
  }
};
