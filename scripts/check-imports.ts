import { cruise, format } from 'dependency-cruiser';
import extractOptions from 'dependency-cruiser/config-utl/extract-depcruise-options';
import extractTsConfig from 'dependency-cruiser/config-utl/extract-ts-config';

/*
 * Holds the direction of imports. The number of modules read is asserted, because the tool passes
 * with zero modules where it cannot parse TypeScript.
 */

const LEAST_MODULES = 80;

const options = await extractOptions('./.dependency-cruiser.cjs');
const result = await cruise(['src'], options, undefined, { tsConfig: extractTsConfig('./tsconfig.json') });
if (typeof result.output === 'string') throw new Error('dependency-cruiser gave no result to read');

const ours = result.output.modules.filter(({ source }) => source.startsWith('src/')).length;
if (ours < LEAST_MODULES) {
  console.error(`Only ${ours} modules of src/ were read, at least ${LEAST_MODULES} were expected.`);
  process.exit(1);
}
if (result.output.summary.error > 0) {
  console.error((await format(result.output, { outputType: 'err' })).output);
  process.exit(1);
}
console.log(`imports: ${ours} modules, all downward`);
