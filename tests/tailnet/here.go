package main

import (
	"net"
	"os"

	"tailscale.com/envknob"
	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
)

// stayHere keeps tailscale's code from looking at, and talking to, anything but loopback.
// What it writes goes into the directory.
func stayHere(directory string) {
	envknob.SetNoLogsNoSupport()
	for name, value := range map[string]string{
		"TS_PANIC_IF_HIT_MAIN_CONTROL":  "1",
		"TS_DISABLE_PORTMAPPER":         "1",
		"TS_ASSUME_NETWORK_UP_FOR_TEST": "1", // loopback alone does not count as a network
		"TS_LOGS_DIR":                   directory,
		"TS_DEBUG_ALWAYS_USE_DERP":      "1", // else each node binds UDP ports on all addresses
	} {
		envknob.Setenv(name, value)
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		os.Unsetenv(name)
	}
	netns.SetEnabled(false)
	netmon.RegisterInterfaceGetter(loopbackOnly)
}

func loopbackOnly() ([]netmon.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var found []netmon.Interface
	for i := range all {
		if all[i].Flags&net.FlagLoopback != 0 {
			found = append(found, netmon.Interface{Interface: &all[i]})
		}
	}
	return found, nil
}
