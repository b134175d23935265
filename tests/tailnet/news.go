package main

import (
	"encoding/json"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/opt"
)

const taggedLogin = "tagged-devices"

// told is what one stream has told its node so far.
type told struct {
	begun bool
	self  string
	rules string
	peers map[tailcfg.NodeID]toldPeer
	users map[tailcfg.UserID]bool
}

type toldPeer struct {
	lasting string // the node without what a patch can say
	online  bool
}

// newsFor returns what a node has not been told yet, or nil, and what is closed when that may have changed.
func (c *control) newsFor(d *device, t *told) (*tailcfg.MapResponse, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now().UTC()
	news := &tailcfg.MapResponse{ControlTime: &now}
	if !t.begun {
		*t = told{begun: true, peers: map[tailcfg.NodeID]toldPeer{}, users: map[tailcfg.UserID]bool{}}
		news.DERPMap = c.derp
		news.Domain = domain
		news.CollectServices = opt.True
		news.DNSConfig = &tailcfg.DNSConfig{Proxied: true, Domains: []string{domain}}
		news.Peers = []*tailcfg.Node{}
	}
	told := c.tellSelf(d, t, news)
	told = c.tellRules(d, t, news) || told
	told = c.tellPeers(d, t, news) || told
	if !told {
		return nil, c.changed
	}
	return news, c.changed
}

func (c *control) tellSelf(d *device, t *told, news *tailcfg.MapResponse) bool {
	self := c.viewLocked(d)
	self.CapMap = tailcfg.NodeCapMap{
		tailcfg.NodeAttrDisableCaptivePortalDetection: nil,
		tailcfg.NodeAttrOnlyTCP443:                    nil, // it need not look for ways to send UDP
	}
	if d.removed {
		self.KeyExpiry, self.Expired = longAgo, true
	}
	text := encoded(self)
	if text == t.self {
		return false
	}
	t.self = text
	news.Node = self
	c.tellUser(d, t, news)
	return true
}

// tellRules sends the packet filter: from whom the node takes packets.
func (c *control) tellRules(d *device, t *told, news *tailcfg.MapResponse) bool {
	rules := slices.Clone(tailcfg.FilterAllowAll)
	if len(d.blocks) > 0 {
		rules[0].SrcIPs = []string{}
		for _, other := range c.devices {
			if !slices.Contains(d.blocks, other.name) {
				for _, prefix := range other.node.Addresses {
					rules[0].SrcIPs = append(rules[0].SrcIPs, prefix.String())
				}
			}
		}
	}
	text := encoded(rules)
	if text == t.rules {
		return false
	}
	t.rules = text
	news.PacketFilter = rules
	return true
}

func (c *control) tellPeers(d *device, t *told, news *tailcfg.MapResponse) bool {
	changed := false
	for _, other := range c.devices {
		id := other.node.ID
		before, known := t.peers[id]
		if other == d {
			continue
		}
		if other.removed || d.removed || other.hidden || !other.joined {
			if known {
				delete(t.peers, id)
				news.PeersRemoved = append(news.PeersRemoved, id)
				changed = true
			}
			continue
		}
		peer := c.viewLocked(other)
		now := toldPeer{lasting: encoded(peer), online: other.isOnline()}
		if now == before {
			continue
		}
		changed = true
		t.peers[id] = now
		c.tellUser(other, t, news)
		online, lastSeen := now.online, other.lastSeen
		if known && now.lasting == before.lasting {
			patch := &tailcfg.PeerChange{NodeID: id, Online: &online}
			if !online {
				patch.LastSeen = &lastSeen
			}
			news.PeersChangedPatch = append(news.PeersChangedPatch, patch)
			continue
		}
		peer.Online = &online
		if !online {
			peer.LastSeen = &lastSeen
		}
		news.PeersChanged = append(news.PeersChanged, peer)
	}
	if news.Peers != nil { // the first answer
		news.Peers, news.PeersChanged = news.PeersChanged, nil
	}
	return changed
}

func (c *control) tellUser(d *device, t *told, news *tailcfg.MapResponse) {
	user := c.userLocked(d)
	if t.users[user.ID] {
		return
	}
	t.users[user.ID] = true
	news.UserProfiles = append(news.UserProfiles, user)
}

// longAgo is when an expired key expired; that it is always the same keeps it from being news.
var longAgo = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// viewLocked is a device as the map shows it, without what changes by itself.
func (c *control) viewLocked(d *device) *tailcfg.Node {
	view := d.node.Clone()
	view.Name = d.dnsName()
	view.User = c.userLocked(d).ID
	view.Tags = d.tags
	view.Capabilities = nil
	if d.expired {
		view.KeyExpiry, view.Expired = longAgo, true
	}
	return view
}

func (c *control) userLocked(d *device) tailcfg.UserProfile {
	login, shown := d.login, d.login
	if len(d.tags) > 0 {
		login, shown = taggedLogin, "Tagged Devices"
	}
	at := slices.Index(c.logins, login)
	if at < 0 {
		at = len(c.logins)
		c.logins = append(c.logins, login)
	}
	return tailcfg.UserProfile{ID: tailcfg.UserID(firstUser + at), LoginName: login, DisplayName: shown}
}

func encoded(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(text)
}
