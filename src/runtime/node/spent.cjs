"use strict";
/*
 * Processor time that goes on in clones. The kernel counts it for each process, so that of a clone begins at zero; who asks for what was spent
 * between two readings, of which one was before the freeze, would be told less than nothing, and prom-client's counters throw at that. Here no
 * reading is less than one before it: a clone's first one is, at the least, the last of before the freeze.
 */
const { cpuUsage, resourceUsage } = process;

const told = { user: 0, system: 0 };
const added = { user: 0, system: 0 };

/** What is told in place of `micros`, which is what the kernel counted. */
function onward(mode, micros) {
  added[mode] = Math.max(added[mode], told[mode] - micros);
  told[mode] = micros + added[mode];
  return told[mode];
}

const own = {
  cpuUsage(previous) {
    const spent = cpuUsage(previous); // throws what Node throws
    const { user, system } = previous || { user: 0, system: 0 };
    return { user: onward("user", spent.user + user) - user, system: onward("system", spent.system + system) - system };
  },
  resourceUsage() {
    const usage = resourceUsage();
    usage.userCPUTime = onward("user", usage.userCPUTime);
    usage.systemCPUTime = onward("system", usage.systemCPUTime);
    return usage;
  },
};

/** Once in each thread, before the user's code and before imports of `node:process` are made to follow. */
function install() {
  process.cpuUsage = own.cpuUsage;
  process.resourceUsage = own.resourceUsage;
}

module.exports = { install };
