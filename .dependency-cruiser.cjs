// Imports run downward only: main → gateway → {realtime, http} → core → {protocol, errors}.
const only = (name, from, allowed) => ({
  name,
  severity: 'error',
  from: { path: from },
  to: { path: '^src/', pathNot: allowed },
});

module.exports = {
  forbidden: [
    { name: 'no-circular', severity: 'error', from: {}, to: { circular: true } },
    only('errors-imports-nothing', '^src/errors\\.ts$', '^src/errors\\.ts$'),
    only('protocol-is-the-bottom', '^src/protocol/', '^src/(protocol/|errors\\.ts$)'),
    only('core-imports-protocol', '^src/core/', '^src/(core/|protocol/|errors\\.ts$)'),
    only('telemetry-imports-core', '^src/telemetry/', '^src/(telemetry/|core/|protocol/|errors\\.ts$)'),
    only('db-implements-core', '^src/db/', '^src/(db/|core/|protocol/|errors\\.ts$)'),
    only('bus-implements-core', '^src/bus/', '^src/(bus/|core/|protocol/|errors\\.ts$)'),
    only('realtime-imports-core', '^src/realtime/', '^src/(realtime/|core/|protocol/|telemetry/|errors\\.ts$)'),
    only('http-imports-core', '^src/http/', '^src/(http/|core/|protocol/|telemetry/|errors\\.ts$)'),
    only('client-imports-protocol', '^src/client/', '^src/(client/|protocol/|errors\\.ts$)'),
    only('worker-imports-protocol', '^src/worker/', '^src/(worker/|protocol/|errors\\.ts$)'),
    {
      name: 'core-names-no-library-of-the-edge',
      severity: 'error',
      from: { path: '^src/core/' },
      to: { path: 'node_modules/(socket\\.io|uWebSockets\\.js|uwebsockets|ioredis|drizzle-orm|postgres|@socket\\.io)' },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'types', 'default'] },
  },
};
