package main

import (
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"net/http/httptest"

	"tailscale.com/derp/derpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

const derpRegion = 1

// serveDERP starts the server through which the nodes send each other packets. There is no STUN: nodes that
// use no UDP have nothing to ask it.
func serveDERP() (*derpserver.Server, *tailcfg.DERPMap) {
	derp := derpserver.New(key.NewNode(), logger.Discard)
	web := httptest.NewUnstartedServer(derpserver.Handler(derp)) // listens on 127.0.0.1
	web.Config.ErrorLog = log.Default()
	web.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} // DERP takes over HTTP/1 connections
	web.StartTLS()
	return derp, &tailcfg.DERPMap{
		OmitDefaultRegions: true,
		Regions: map[int]*tailcfg.DERPRegion{derpRegion: {
			RegionID:   derpRegion,
			RegionCode: "test",
			RegionName: "Test",
			// nodes do not measure how far it is, which without UDP takes 3 s
			NoMeasureNoHome: true,
			Nodes: []*tailcfg.DERPNode{{
				Name:             "1a",
				RegionID:         derpRegion,
				HostName:         "127.0.0.1",
				IPv4:             "127.0.0.1",
				IPv6:             "none",
				STUNPort:         -1,
				DERPPort:         web.Listener.Addr().(*net.TCPAddr).Port,
				InsecureForTests: true,
			}},
		}},
	}
}
