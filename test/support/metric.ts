/** The value of one series at a gateway, 0 where there is none. `labels` as printed, `{reason="standby"}`. */
export async function metric(url: string, name: string, labels = ''): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const line = text.split('\n').find((one) => one.startsWith(`tutti_${name}${labels} `));
  return Number(line?.split(' ').at(-1) ?? 0);
}
