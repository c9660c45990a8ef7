# One end of SCTP in a network namespace, for kernels that track SCTP but have no sockets of it: raw packets. It answers
# INIT on its ports with INIT ACK, and probes: an INIT that is answered came through, and so did its answer.
# Lines on stdin:   serve PORT...   |   probe ID ADDRESS PORT MILLISECONDS
# Lines on stdout:  ready           |   ID 1 (answered) or ID 0
use strict;
use warnings;
use Socket qw(AF_INET AF_INET6 SOCK_RAW inet_pton inet_ntop pack_sockaddr_in pack_sockaddr_in6 unpack_sockaddr_in
  unpack_sockaddr_in6);
use Time::HiRes qw(time);

use constant { IPPROTO_SCTP => 132, SCTP_INIT => 1, SCTP_INIT_ACK => 2, AGAIN_S => 0.3 };
$| = 1;

my @crc_table = map {
    my $c = $_;
    $c = $c & 1 ? 0x82f63b78 ^ ($c >> 1) : $c >> 1 for 1 .. 8;
    $c;
} 0 .. 255;

sub crc32c {
    my $c = 0xffffffff;
    $c = $crc_table[($c ^ $_) & 255] ^ ($c >> 8) for unpack("C*", $_[0]);
    return $c ^ 0xffffffff;
}

# Common header and one INIT or INIT ACK chunk (RFC 9260, 3.1 and 3.3.2).
sub packet {
    my ($from, $to, $tag, $type, $own_tag) = @_;
    my $chunk = pack("CCnNNnnN", $type, 0, 20, $own_tag, 65536, 1, 1, 1);
    my $sum = crc32c(pack("nnNN", $from, $to, $tag, 0) . $chunk);
    return pack("nnN", $from, $to, $tag) . pack("V", $sum) . $chunk;
}

my %socket = (4 => undef, 6 => undef);
socket($socket{4}, AF_INET,  SOCK_RAW, IPPROTO_SCTP) or die "raw socket: $!";
socket($socket{6}, AF_INET6, SOCK_RAW, IPPROTO_SCTP) or die "raw socket: $!";

sub send_to {
    my ($family, $address, $bytes) = @_;
    my $raw = inet_pton($family == 4 ? AF_INET : AF_INET6, $address);
    my $to  = $family == 4 ? pack_sockaddr_in(0, $raw) : pack_sockaddr_in6(0, $raw);
    send($socket{$family}, $bytes, 0, $to);    # refused: as if it were lost
}

my %served;
my %waiting;       # "ADDRESS PORT OWNPORT" => { id, family, deadline, again }
my $next_port = 20000 + $$ % 20000;

sub received {
    my ($family) = @_;
    my $from = recv($socket{$family}, my $bytes, 2048, 0);
    return unless defined $from;
    $bytes = substr($bytes, 4 * (ord($bytes) & 15)) if $family == 4;
    my ($source, $port, $tag, undef, $type, undef, undef, $peer_tag) = unpack("nnNNCCnN", $bytes);
    my (undef, $raw) = $family == 4 ? unpack_sockaddr_in($from) : unpack_sockaddr_in6($from);
    my $address = inet_ntop($family == 4 ? AF_INET : AF_INET6, $raw);
    if ($type == SCTP_INIT && $served{$port}) {
        send_to($family, $address, packet($port, $source, $peer_tag, SCTP_INIT_ACK, 4711));
    }
    elsif ($type == SCTP_INIT_ACK) {
        my $found = delete $waiting{"$address $source $port"};
        print "$found->{id} 1\n" if $found;
    }
}

sub told {
    my ($verb, @words) = split ' ', $_[0];
    if ($verb eq "serve") { $served{$_} = 1 for @words; return }
    my ($id, $address, $port, $ms) = @words;
    $next_port = 20000 if ++$next_port > 60000;
    $waiting{"$address $port $next_port"} =
      { id => $id, family => $address =~ /:/ ? 6 : 4, deadline => time + $ms / 1000, again => 0 };
}

sub look_after {
    my $now = time;
    for my $key (keys %waiting) {
        my $probe = $waiting{$key};
        if ($now >= $probe->{deadline}) { print "$probe->{id} 0\n"; delete $waiting{$key}; next }
        next if $now < $probe->{again};
        $probe->{again} = $now + AGAIN_S;
        my ($address, $port, $own) = split ' ', $key;
        send_to($probe->{family}, $address, packet($own, $port, 0, SCTP_INIT, 42));
    }
}

print "ready\n";
my $text = "";
while (1) {
    my $bits = "";
    vec($bits, fileno($_), 1) = 1 for *STDIN, values %socket;
    select($bits, undef, undef, %waiting ? 0.02 : undef);
    for my $family (4, 6) { received($family) if vec($bits, fileno($socket{$family}), 1) }
    if (vec($bits, fileno(STDIN), 1)) {
        last unless sysread(STDIN, $text, 65536, length $text);
        told($1) while $text =~ s/^(.*)\n//;
    }
    look_after();
}
