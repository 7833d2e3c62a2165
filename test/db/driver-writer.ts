import postgres from 'postgres';

/*
 * A process that writes through the driver for as long as it is told to, by the ways the database code uses, while
 * the test kills Postgres. Says on stdout what became of its queries. An uncaught error ends it, as it would a gateway.
 */
const sql = postgres(process.argv[2] ?? '', { max: 6, connect_timeout: 2, backoff: () => 0.02, onnotice: () => {} });
const tally = { started: 0, done: 0, failed: 0, doneSinceMark: 0 };
const large = 'x'.repeat(4000);
let running = true;

async function count(query: () => Promise<unknown>): Promise<void> {
  tally.started += 1;
  try {
    await query();
    tally.done += 1;
    tally.doneSinceMark += 1;
  } catch {
    tally.failed += 1;
    await new Promise((wait) => setTimeout(wait, 5));
  }
}

const ways = [
  () => sql`insert into written (text) values ('small')`,
  () => sql`insert into written (text) values (${large})`,
  () =>
    sql.begin(async (tx) => {
      await tx`insert into written (text) values ('one')`;
      await new Promise((wait) => setTimeout(wait, Math.random() * 4));
      await tx`insert into written (text) values (${large})`;
    }),
  () => sql.begin((tx) => Array.from({ length: 20 }, (_, i) => tx`insert into written (text) values (${large + i})`)),
  () => Promise.all(Array.from({ length: 10 }, () => sql`select count(*) from written where text = 'none'`)),
];

async function write(index: number): Promise<void> {
  for (let i = index; running; i++) await count(ways[i % ways.length] as () => Promise<unknown>);
}

const writers = Array.from({ length: 12 }, (_, index) => write(index));
process.on('message', async (message) => {
  if (message === 'mark') tally.doneSinceMark = 0;
  if (message === 'stop') {
    running = false;
    await Promise.all(writers);
    await sql.end({ timeout: 1 });
  }
  process.send?.(tally);
  if (message === 'stop') process.disconnect();
});
