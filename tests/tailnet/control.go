package main

import (
	"context"
	"net/http/httptest"
	"slices"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

const (
	domain           = "tail.test"
	keepAliveSeconds = 50
	firstUser        = 1000 // ids of users; testcontrol's own, which nobody sees, begin at 1
)

// A device is what the control server knows of a node, whether it runs or not.
type device struct {
	name     string
	label    string // the first of its DNS name
	hostName string
	login    string
	tags     []string
	blocks   []string // names of nodes whose packets it drops
	online   *bool    // what others are told instead of the truth
	expired  bool
	hidden   bool // the others are not told of it, as if the tailnet's rules kept them apart
	removed  bool

	machine  key.MachinePublic
	keys     []key.NodePublic // all it has had
	node     *tailcfg.Node    // as registered, with what it has told since
	noted    bool             // it has told, since it was last started
	polls    int              // open streams of it
	joined   bool             // it has done both, so others may know
	lastSeen time.Time
}

// control is tailscale's test control server, which registers nodes, with a map of our own: it tells nodes of
// each other as the real one does, a complete map first and then what has changed.
type control struct {
	*testcontrol.Server
	derp *tailcfg.DERPMap

	mu       sync.Mutex
	devices  []*device
	expected *device // who comes next
	logins   []string
	changed  chan struct{} // closed at the next change
}

func serveControl(derp *tailcfg.DERPMap) *control {
	c := &control{derp: derp, changed: make(chan struct{})}
	c.Server = &testcontrol.Server{
		Logf:                    logger.Discard,
		DERPMap:                 derp,
		MagicDNSDomain:          domain,
		DefaultNodeCapabilities: &tailcfg.NodeCapMap{},
		AltMapStream:            c.serveMap,
	}
	c.HTTPTestServer = httptest.NewServer(c.Server) // on 127.0.0.1
	return c
}

// byName finds the node that has a name now; before it, others may have had it that were removed.
func (c *control) byName(name string) *device {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range slices.Backward(c.devices) {
		if d.name == name {
			return d
		}
	}
	return nil
}

// expect says whose the next unknown machine is.
func (c *control) expect(d *device) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expected = d
}

// change does something to devices and has all nodes told.
func (c *control) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	for _, d := range c.devices {
		d.joined = d.joined || d.noted && d.polls > 0
	}
	c.announceLocked()
}

func (c *control) announceLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// until waits for something to be true.
func (c *control) until(ctx context.Context, what func() bool) error {
	for {
		c.mu.Lock()
		done, changed := what(), c.changed
		c.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (c *control) keyOf(d *device) key.NodePublic {
	c.mu.Lock()
	defer c.mu.Unlock()
	return d.node.Key
}

// mayMeet says whether two nodes can be peers of each other.
func (c *control) mayMeet(a, b *device) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !(a.removed || b.removed || a.expired || b.expired || a.hidden || b.hidden)
}

func (c *control) facts(name string) answer {
	d := c.byName(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	facts := answer{
		ID:      string(d.node.StableID),
		NodeID:  int64(d.node.ID),
		NodeKey: d.node.Key.String(),
		DNSName: d.dnsName(),
	}
	for _, address := range d.node.Addresses {
		facts.IPs = append(facts.IPs, address.Addr().String())
	}
	return facts
}

// serveMap answers a request for the map: with a stream of changes, or by noting what the node says of itself.
func (c *control) serveMap(ctx context.Context, w testcontrol.MapStreamWriter, req *tailcfg.MapRequest) {
	d := c.deviceOf(req.NodeKey)
	if d == nil {
		return
	}
	if !req.Stream {
		c.change(func() { d.note(req) })
		_ = w.SendMapMessage(&tailcfg.MapResponse{})
		return
	}
	c.change(func() { d.polls++ })
	defer c.change(func() {
		d.polls--
		d.lastSeen = time.Now().UTC()
	})
	var told told
	for {
		news, changed := c.newsFor(d, &told)
		if news != nil && w.SendMapMessage(news) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(keepAliveSeconds * time.Second):
			if w.SendMapMessage(&tailcfg.MapResponse{KeepAlive: true}) != nil {
				return
			}
		}
	}
}

// deviceOf finds the device that has registered a key: the one expected, if nobody has its machine yet.
func (c *control) deviceOf(nodeKey key.NodePublic) *device {
	registered := c.Node(nodeKey)
	if registered == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.devices, func(d *device) bool { return d.machine == registered.Machine })
	if at < 0 {
		d := c.expected
		if d == nil {
			return nil
		}
		c.expected = nil
		d.machine = registered.Machine
		d.keys = []key.NodePublic{nodeKey}
		d.node = registered
		d.node.HomeDERP = derpRegion // it will say so, but others may be faster
		c.devices = append(c.devices, d)
		return d
	}
	d := c.devices[at]
	if !slices.Contains(d.keys, nodeKey) { // an old one may still be heard of
		d.keys = append(d.keys, nodeKey)
		d.node.Key = nodeKey
		c.announceLocked()
	}
	return d
}

// note keeps what a node says of itself, except for endpoints: those are for UDP.
func (d *device) note(req *tailcfg.MapRequest) {
	d.noted = true
	d.node.DiscoKey = req.DiscoKey
	d.node.Cap = req.Version
	if req.Hostinfo != nil {
		d.node.Hostinfo = req.Hostinfo.View()
	}
}

func (d *device) dnsName() string { return d.label + "." + domain + "." }

func (d *device) isOnline() bool {
	if d.online != nil {
		return *d.online
	}
	return d.polls > 0
}
