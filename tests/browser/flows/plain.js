// The page is there, and nothing is wrong with it.

export async function run(bench) {
  const seat = await bench.seat({ role: null });
  await seat.page.getByText("sidekey").first().waitFor();
  await seat.accessible("the index");
  await seat.shot("index");
}
